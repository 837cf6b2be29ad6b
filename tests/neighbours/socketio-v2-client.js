'use strict';

// Sessions of a Socket.IO 2 client, one after the other, each by polling and with events in both directions.
// --url URL; --sessions N; --base64 true|false

const io = require('socket.io-client-v2');
const { options, run, within } = require('./common');

const given = options();

async function session() {
  const socket = io(given.url, {
    transports: ['polling'],
    forceBase64: given.base64 === 'true',
    forceNew: true,
    reconnection: false,
  });
  const lost = new Promise((_, reject) => {
    socket.on('disconnect', (why) => reject(new Error(`disconnected: ${why}`)));
    socket.on('connect_error', (error) => reject(new Error(`${error.message} ${error.description}`)));
  });
  lost.catch(() => {});
  const who = () => within(10000, 'who', Promise.race([new Promise((done) => socket.emit('who', done)), lost]));
  const node = await who();
  for (let i = 0; i < 5; i++) {
    if ((await who()) !== node) {
      throw new Error(`left ${node}`);
    }
  }
  socket.close();
  return node;
}

run(async () => {
  const nodes = [];
  for (let i = 0; i < Number(given.sessions); i++) {
    nodes.push(await session());
  }
  return { nodes };
});
