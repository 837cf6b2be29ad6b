'use strict';

// An echo by ws, with permessage-deflate and the sub-protocol `chat`; GET answers too.  --port N

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
  perMessageDeflate: true,
  maxPayload: 64 << 20,
  handleProtocols: (protocols) => (protocols.has('chat') ? 'chat' : false),
});
sockets.on('connection', (socket, request) => {
  seen.push({ method: request.method, url: request.url, headers: request.headers });
  socket.on('error', () => {});
  socket.on('message', (data, binary) => socket.send(data, { binary }));
});

endWithParent();
listen(server, given);
