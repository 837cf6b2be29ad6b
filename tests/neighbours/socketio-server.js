'use strict';

// A Socket.IO 4 server as sites run it beside PHP: echoes, rooms, and what PHP publishes through Redis.
// --port N | --socket PATH; --cert FILE --key FILE for https; --redis PATH; --node NAME; --ping MS

const http = require('http');
const https = require('https');
const fs = require('fs');
const { Server } = require('socket.io');
const { endWithParent, listen, options } = require('./common');

const given = options();
const answer = (request, response) => {
  response.setHeader('Content-Type', 'text/plain');
  response.end('the socket server, not the site\n');
};
const server = given.cert
  ? https.createServer({ cert: fs.readFileSync(given.cert), key: fs.readFileSync(given.key) }, answer)
  : http.createServer(answer);
const ping = Number(given.ping || 5000);
const io = new Server(server, { maxHttpBufferSize: 4 << 20, pingInterval: ping, pingTimeout: ping });

io.on('connection', (socket) => {
  let last = 0;
  // Counted both ways: an event that is lost, or comes twice, is told.
  socket.on('tick', (number) => {
    if (number !== last + 1) {
      socket.emit('broken', `${number} came after ${last}`);
    }
    last = number;
    socket.emit('tock', number);
  });
  socket.on('echo', (...words) => words.pop()(...words));
  socket.on('join', (room, done) => {
    socket.join(room);
    done(room);
  });
  socket.on('say', (room, text) => io.to(room).emit('said', text));
  socket.on('bytes', (count) => socket.emit('filled', Buffer.alloc(count, 0x5a)));
  socket.on('close me', () => socket.disconnect(true));
  socket.on('who', (done) => {
    const { headers } = socket.handshake;
    done({ node: given.node || null, transport: socket.conn.transport.name, headers });
  });
});

async function subscribe(path) {
  const { createClient } = require('redis');
  const redis = createClient({ socket: { path } });
  redis.on('error', (error) => console.error(String(error)));
  await redis.connect();
  await redis.subscribe('news', (message) => {
    const { event, data } = JSON.parse(message);
    io.emit(event, data);
  });
}

endWithParent();
(given.redis ? subscribe(given.redis) : Promise.resolve()).then(() => listen(server, given));
