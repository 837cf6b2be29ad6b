'use strict';

// laravel-echo-server 1.6, as its command line starts it.
// --port N --redis PATH --auth URL; --cert FILE --key FILE for https

const echo = require('laravel-echo-server');
const { endWithParent, options, print } = require('./common');

const given = options();
const settings = {
  appKey: 'key',
  authHost: given.auth || 'http://127.0.0.1:9',
  authEndpoint: '/broadcasting/auth',
  clients: [{ appId: 'app', key: 'secret' }],
  database: 'redis',
  databaseConfig: { redis: { path: given.redis, keyPrefix: 'laravel_database_' } },
  devMode: false,
  host: '127.0.0.1',
  port: given.port,
  protocol: given.cert ? 'https' : 'http',
  sslCertPath: given.cert || '',
  sslKeyPath: given.key || '',
  socketio: {},
  subscribers: { http: true, redis: true },
  apiOriginAllow: { allowCors: false },
};

endWithParent();
echo.run(settings).then(
  () => print({ listening: Number(given.port) }),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
