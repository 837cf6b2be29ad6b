'use strict';

// Loaded with `node --require`: the names that the tests use are this machine.

const dns = require('dns');

const ours = /(^|\.)(test|example\.com|example)$/;
const lookup = dns.lookup;

dns.lookup = (host, options, callback) => {
  const done = typeof options === 'function' ? options : callback;
  if (!ours.test(host)) {
    return lookup(host, options, callback);
  }
  const all = typeof options === 'object' && options !== null && options.all;
  return process.nextTick(() => (all ? done(null, [{ address: '127.0.0.1', family: 4 }]) : done(null, '127.0.0.1', 4)));
};
