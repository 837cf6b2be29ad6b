'use strict';

// Drives a Socket.IO server and prints what happened.
// --url URL; --mode polling|websocket|upgrade; --wait EVENT: says {"ready":true} and waits for one such event;
// --until FILE: counts events both ways until that file is there, and says {"ready":true} after the first fifty;
// --frames N: so many binary echoes of 64 KiB

const crypto = require('crypto');
const fs = require('fs');
const { io } = require('socket.io-client');
const { options, print, run, within } = require('./common');

const given = options();
const transports = { polling: ['polling'], websocket: ['websocket'], upgrade: ['polling', 'websocket'] }[given.mode];
const once = (emitter, event) => new Promise((resolve) => emitter.once(event, (...words) => resolve(words)));

// Numbered events to the server, each of which comes back, until the file is there. None may be lost or come twice.
async function count(socket, first) {
  let [sent, received, broken] = [0, 0, null];
  socket.on('tock', (number) => {
    if (number !== received + 1) {
      broken = broken || `tock ${number} came after ${received}`;
    }
    received = number;
    if (received === 50) {
      print({ ready: true });
    }
  });
  socket.on('broken', (why) => {
    broken = broken || `tick ${why}`;
  });
  socket.on('disconnect', (why) => {
    broken = broken || `disconnected: ${why}`;
  });
  while (!fs.existsSync(given.until)) {
    socket.emit('tick', ++sent);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  for (let waited = 0; received < sent && !broken && waited < 10000; waited += 20) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return { first, transport: socket.io.engine.transport.name, sent, received, broken };
}

run(async () => {
  const socket = io(given.url, { transports, reconnection: false, forceNew: true });
  const failed = once(socket, 'connect_error').then(([error]) => {
    const { description } = error;
    throw new Error(`${error.message} ${(description && (description.message || description)) || ''}`);
  });
  let first = '';
  const upgraded = new Promise((resolve) => {
    socket.io.on('open', () => {
      first = socket.io.engine.transport.name;
      socket.io.engine.once('upgrade', resolve);
    });
  });
  await within(10000, 'connect', Promise.race([once(socket, 'connect'), failed]));
  if (given.mode === 'upgrade') {
    await within(10000, 'upgrade', upgraded);
  }

  if (given.wait) {
    const event = once(socket, given.wait);
    print({ ready: true });
    const [data] = await within(20000, given.wait, event);
    return { first, transport: socket.io.engine.transport.name, data };
  }

  if (given.until) {
    return count(socket, first);
  }

  const ask = (...words) => within(15000, words[0], socket.emitWithAck(...words));
  const text = await ask('echo', 'héllo wörld ✓');
  const binary = await ask('echo', Buffer.from([0, 1, 2, 253, 254, 255]));

  let intact = true;
  const frames = Number(given.frames || 8);
  for (let i = 0; i < frames; i++) {
    const sent = crypto.randomBytes(65536);
    intact = sent.equals(await ask('echo', sent)) && intact;
  }
  const filled = once(socket, 'filled');
  socket.emit('bytes', 1 << 20);
  const [large] = await within(15000, 'filled', filled);

  await ask('join', 'room');
  const said = once(socket, 'said');
  socket.emit('say', 'room', 'to the room');
  const [heard] = await within(15000, 'said', said);

  const who = await ask('who');
  const result = {
    first,
    transport: socket.io.engine.transport.name,
    text,
    binary: [...binary],
    frames,
    intact,
    large: large.length,
    heard,
    who,
  };
  const gone = once(socket, 'disconnect');
  socket.emit('close me');
  [result.closed] = await within(10000, 'disconnect', gone);
  return result;
});
