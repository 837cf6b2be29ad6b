'use strict';

// A Socket.IO 2 server, which speaks Engine.IO 3. --node NAME

const http = require('http');
const { endWithParent, listen, options } = require('./common');
const engine = require.resolve('socket.io', { paths: [require.resolve('laravel-echo-server')] });

const given = options();
const server = http.createServer();
require(engine)(server, { cookie: false }).on('connection', (socket) => {
  socket.on('who', (done) => done(given.node));
});

endWithParent();
listen(server, given);
