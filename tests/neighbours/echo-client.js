'use strict';

// laravel-echo with the Socket.IO 2 client that laravel-echo-server 1.6 asks for.
// --url URL --channel NAME --event NAME; --mode polling|websocket|upgrade
// Says {"ready":true} once it is subscribed, then waits for one event and prints it.

const io = require('socket.io-client-v2');
const Echo = require('laravel-echo').default || require('laravel-echo');
const { options, print, run, within } = require('./common');

const given = options();
const transports = { polling: ['polling'], websocket: ['websocket'], upgrade: ['polling', 'websocket'] }[
  given.mode || 'upgrade'
];

run(async () => {
  const echo = new Echo({ broadcaster: 'socket.io', client: io, host: given.url, transports, reconnection: false });
  const { socket } = echo.connector;
  const event = new Promise((resolve) => echo.channel(given.channel).listen(given.event, resolve));
  await within(
    10000,
    'connect',
    new Promise((resolve, reject) => {
      socket.on('connect', resolve);
      socket.on('connect_error', (error) => reject(new Error(`${error.message} ${error.description || ''}`)));
    }),
  );
  if (given.mode === 'upgrade' && socket.io.engine.transport.name !== 'websocket') {
    await within(10000, 'upgrade', new Promise((resolve) => socket.io.engine.once('upgrade', resolve)));
  }
  print({ ready: true, id: echo.socketId(), transport: socket.io.engine.transport.name });
  const data = await within(20000, given.event, event);
  return { data, transport: socket.io.engine.transport.name };
});
