'use strict';

// An echo by ws that remembers what it saw of every socket; GET gives it as JSON.  --port N
// `?pings=N` sends so many Pings at once.

const http = require('http');
const { WebSocketServer } = require('ws');
const { endWithParent, listen, options } = require('./common');

const given = options();
const seen = [];
const server = http.createServer((request, response) => {
  response.setHeader('Content-Type', 'application/json');
  response.end(JSON.stringify(seen));
});
const sockets = new WebSocketServer({
  server,
  perMessageDeflate: { threshold: 0 },
  maxPayload: 64 << 20,
});
sockets.on('connection', (socket, request) => {
  const own = { url: request.url, messages: 0, bytes: 0, pings: [], pongs: [], code: null };
  seen.push(own);
  socket.on('error', () => {});
  socket.on('message', (data, binary) => {
    own.messages += 1;
    own.bytes += data.length;
    socket.send(data, { binary });
  });
  socket.on('ping', (data) => own.pings.push(data.toString('latin1')));
  socket.on('pong', (data) => own.pongs.push(data.toString('latin1')));
  socket.on('close', (code) => {
    own.code = code;
  });
  const pings = Number(new URL(request.url, 'http://x').searchParams.get('pings') || 0);
  for (let i = 0; i < pings; i += 1) socket.ping(`own ${i}`);
});

endWithParent();
listen(server, given);
