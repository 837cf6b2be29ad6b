'use strict';

// WebSockets over HTTP/2 (RFC 8441) on one connection: extended CONNECT by Node's http2, frames by ws.
// --url URL --mode echo|half|reset|reset-later|hold|flood|fill|refused; see each below. Prints what happened.

const crypto = require('crypto');
const http2 = require('http2');
const { once } = require('events');
const { WebSocket } = require('ws');
const { options, print, run, within } = require('./common');

const given = options();
const path = given.path || '/live';

// One connection whose SETTINGS are there.
const connect = async () => {
  const session = http2.connect(given.url);
  session.on('error', () => {});
  await within(10000, 'SETTINGS', once(session, 'remoteSettings'));
  return session;
};

const ask = (session, more = {}, body = undefined) => {
  const stream = session.request(
    { ':method': 'CONNECT', ':protocol': 'websocket', ':path': path, 'sec-websocket-version': '13', ...more },
    { endStream: false },
  );
  stream.on('error', () => {});
  if (body) {
    stream.write(body);
  }
  return stream;
};

const answer = async (stream) => (await within(15000, 'the answer', once(stream, 'response')))[0];

// A client of ws on an HTTP/2 stream.
const socketOn = (stream) => {
  const socket = new WebSocket(null, undefined, { autoPong: true, closeTimeout: 30000 });
  socket._isServer = false;
  socket.setSocket(stream, Buffer.alloc(0), { maxPayload: 64 << 20, allowSynchronousEvents: true });
  return socket;
};

const open = async (session, more) => {
  const stream = ask(session, more);
  const head = await answer(stream);
  if (head[':status'] !== 200) {
    throw new Error(`answered ${head[':status']}`);
  }
  return { stream, head, socket: socketOn(stream) };
};

const echo = async (socket, message) => {
  socket.send(message);
  const [back] = await within(20000, 'the echo', once(socket, 'message'));
  return Buffer.from(message).equals(back);
};

// A masked text frame; the mask is zeros.
const frame = (text) => Buffer.concat([Buffer.from([0x81, 0x80 + text.length, 0, 0, 0, 0]), Buffer.from(text)]);

const get = (session, path) =>
  within(
    15000,
    `GET ${path}`,
    new Promise((resolve, reject) => {
      const begun = Date.now();
      const stream = session.request({ ':path': path });
      let status = 0;
      stream.on('response', (head) => (status = head[':status']));
      stream.on('data', () => {});
      stream.on('end', () => resolve({ status, ms: Date.now() - begun }));
      stream.on('error', reject);
      stream.end();
    }),
  );

const modes = {
  // --sockets N on one connection, each echoing messages of all sizes, then closed with a code.
  async echo() {
    const session = await connect();
    const sockets = await Promise.all([...Array(Number(given.sockets || 1))].map(() => open(session)));
    let intact = true;
    for (const size of [0, 1, 125, 126, 65535, 65536, 1 << 20]) {
      const sent = sockets.map(() => crypto.randomBytes(size));
      const back = await Promise.all(sockets.map(({ socket }, i) => echo(socket, sent[i])));
      intact = intact && back.every(Boolean);
    }
    const page = await get(session, '/');
    const closed = sockets.map(({ socket }) => once(socket, 'close'));
    sockets.forEach(({ socket }) => socket.close(4001, 'enough'));
    const codes = (await within(15000, 'closing', Promise.all(closed))).map(([code]) => code);
    return { offered: session.remoteSettings.enableConnectProtocol, head: sockets[0].head, intact, page, codes };
  },

  // A frame right behind the handshake, before its answer.
  async early() {
    const session = await connect();
    const stream = ask(session, {}, frame('early'));
    const head = await answer(stream);
    const [back] = await within(10000, 'the echo', once(socketOn(stream), 'message'));
    return { status: head[':status'], back: String(back) };
  },

  // Ends its side; the back end may go on, and then ends too.
  async half() {
    const session = await connect();
    const stream = ask(session);
    const head = await answer(stream);
    let said = '';
    stream.on('data', (piece) => (said += piece));
    stream.end('bye');
    await within(10000, 'the end', once(stream, 'end'));
    await within(10000, 'the close', stream.closed ? Promise.resolve() : once(stream, 'close'));
    return { status: head[':status'], said, reset: stream.rstCode };
  },

  // Resets one of two sockets; the other goes on.
  async reset() {
    const session = await connect();
    const [one, other] = await Promise.all([open(session), open(session)]);
    await echo(one.socket, 'x');
    print({ ready: true });
    one.stream.close(Number(given.code || http2.constants.NGHTTP2_CANCEL));
    await new Promise((resolve) => setTimeout(resolve, 300));
    return { other: await echo(other.socket, 'still here') };
  },

  // Opens --sockets N, says so, echoes on each every --every ms, and tells how each closed. With --linger N it says
  // when the connection was told to go.
  async hold() {
    const session = await connect();
    let goaway = false;
    session.on('goaway', () => (goaway = true));
    const sockets = await Promise.all([...Array(Number(given.sockets || 1))].map(() => open(session)));
    const closed = sockets.map(({ socket }) => once(socket, 'close'));
    await Promise.all(sockets.map(({ socket }) => echo(socket, 'first')));
    print({ ready: true });
    const echoes = [];
    if (given.quiet) {
      await new Promise((resolve) => setTimeout(resolve, Number(given.quiet)));
      echoes.push(...(await Promise.all(sockets.map(({ socket }) => echo(socket, 'later')))));
      sockets.forEach(({ socket }) => socket.close(1000));
    }
    const codes = (await within(60000, 'closing', Promise.all(closed))).map(([code]) => code);
    return { codes, echoes, goaway };
  },

  // Opens a socket, says so, and asks for more until one is refused; then asks on a new connection.
  async switched() {
    const session = await connect();
    let goaway = false;
    session.on('goaway', () => (goaway = true));
    const { socket } = await open(session);
    print({ ready: true });
    let status = 200;
    for (let tries = 0; status === 200 && tries < 200; tries++) {
      const stream = ask(session);
      status = (await answer(stream))[':status'];
      stream.resume();
      stream.close();
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    const back = await echo(socket, 'still here');
    const again = (await connect()).remoteSettings.enableConnectProtocol;
    return { offered: session.remoteSettings.enableConnectProtocol, status, goaway, again, echo: back };
  },

  // Opens a socket that is flooded and reads nothing of it; other requests of the connection are answered meanwhile.
  // Then reads on until --bytes have come.
  async flood() {
    const session = await connect();
    const stream = ask(session);
    await answer(stream);
    stream.pause();
    print({ ready: true });
    const { socket } = await open(session, { ':path': '/echo' });
    const pages = [];
    const until = Date.now() + Number(given.ms);
    while (Date.now() < until) {
      pages.push(await get(session, '/'));
      await echo(socket, 'beside it');
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    print({ held: true });
    let bytes = 0;
    stream.on('data', (piece) => (bytes += piece.length));
    stream.resume();
    const begun = Date.now();
    while (bytes < Number(given.bytes) && Date.now() - begun < 30000) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    const ms = Date.now() - begun;
    return { pages: pages.length, slowest: Math.max(...pages.map(({ ms }) => ms)), bytes, ms };
  },

  // Writes to a socket whose back end reads nothing, until nothing more is taken for a second; other requests are
  // answered meanwhile.
  async fill() {
    const session = await connect();
    const stream = ask(session);
    await answer(stream);
    print({ ready: true });
    const piece = Buffer.alloc(64 << 10, 1);
    let bytes = 0;
    let moved = Date.now();
    while (bytes < 256 << 20 && Date.now() - moved < 1000) {
      const took = await Promise.race([
        new Promise((resolve) => stream.write(piece, () => resolve(true))),
        new Promise((resolve) => setTimeout(resolve, 1000, false)),
      ]);
      if (took) {
        bytes += piece.length;
        moved = Date.now();
      }
    }
    const page = await get(session, '/');
    const { socket } = await open(session, { ':path': '/echo' });
    return { bytes, page, beside: await echo(socket, 'beside it') };
  },

  // Sends a message of --size bytes and tells with which code that ended.
  async breach() {
    const { socket } = await open(await connect());
    const closed = once(socket, 'close');
    socket.send(Buffer.alloc(Number(given.size)));
    return { code: (await within(10000, 'closing', closed))[0] };
  },

  // What a handshake is answered with: --fields JSON. A socket that opens is let go at once.
  async refused() {
    const session = await connect();
    const stream = ask(session, given.fields ? JSON.parse(given.fields) : {});
    const ended = within(10000, 'an end', new Promise((resolve) => stream.on('close', resolve)));
    let status = 0;
    let text = '';
    stream.on('response', (head) => {
      status = head[':status'];
      if (status === 200) {
        stream.close();
      }
    });
    stream.on('data', (piece) => (text += piece));
    stream.on('end', () => stream.end());
    await ended;
    const page = await get(session, '/').catch((error) => ({ error: String(error) }));
    return { offered: session.remoteSettings.enableConnectProtocol, status, text, reset: stream.rstCode, page };
  },
};

run(() => modes[given.mode]());
