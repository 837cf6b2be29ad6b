'use strict';

// The Pusher protocol, as Reverb, Soketi and laravel-websockets speak it: /app/KEY for clients, /apps/ID/events for
// publishers, and a count of every request that reached it.  --port N; --cert FILE --key FILE for https

const http = require('http');
const https = require('https');
const fs = require('fs');
const { WebSocketServer } = require('ws');
const { endWithParent, listen, options } = require('./common');

const given = options();
const seen = [];
const channels = new Map();

const publish = (name, event, data) => {
  const members = channels.get(name) || new Set();
  for (const socket of members) {
    socket.send(JSON.stringify({ event, channel: name, data }));
  }
  return members.size;
};

const answer = (request, response) => {
  seen.push(`${request.method} ${request.url}`);
  const json = (status, value) => {
    response.writeHead(status, { 'Content-Type': 'application/json' });
    response.end(JSON.stringify(value));
  };
  if (request.url === '/seen') {
    return json(200, seen);
  }
  if (request.method !== 'POST' || !/^\/apps\/[^/]+\/events(\?|$)/.test(request.url)) {
    return json(404, { error: 'not here' });
  }
  let body = '';
  request.on('data', (piece) => (body += piece));
  request.on('end', () => {
    const { name, data, channels: names } = JSON.parse(body);
    json(200, { sent: names.reduce((sum, channel) => sum + publish(channel, name, data), 0) });
  });
};
const server = given.cert
  ? https.createServer({ cert: fs.readFileSync(given.cert), key: fs.readFileSync(given.key) }, answer)
  : http.createServer(answer);

const sockets = new WebSocketServer({ noServer: true });
let count = 0;
server.on('upgrade', (request, stream, head) => {
  seen.push(`UPGRADE ${request.url}`);
  sockets.handleUpgrade(request, stream, head, (socket) => {
    const path = new URL(request.url, 'http://x').pathname;
    if (!path.startsWith('/app/')) {
      // laravel-websockets routes handlers of the application's own here, whatever their path.
      socket.on('message', (data, binary) => socket.send(binary ? data : `${path}: ${data}`, { binary }));
      return;
    }
    const id = `${process.pid}.${++count}`;
    socket.send(
      JSON.stringify({
        event: 'pusher:connection_established',
        data: JSON.stringify({ socket_id: id, activity_timeout: 120 }),
      }),
    );
    socket.on('message', (text) => {
      const { event, data, channel } = JSON.parse(text);
      if (event === 'pusher:ping') {
        socket.send(JSON.stringify({ event: 'pusher:pong', data: '{}' }));
      } else if (event === 'pusher:subscribe') {
        channels.set(data.channel, (channels.get(data.channel) || new Set()).add(socket));
        socket.send(
          JSON.stringify({ event: 'pusher_internal:subscription_succeeded', channel: data.channel, data: '{}' }),
        );
      } else if (event.startsWith('client-')) {
        publish(channel, event, data);
      }
    });
    socket.on('close', () => channels.forEach((members) => members.delete(socket)));
  });
});

endWithParent();
listen(server, given);
