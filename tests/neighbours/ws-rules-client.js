'use strict';

// A ws client against the rules of a site.  --url URL, and one of
//   --rounds N    as many messages as that, of 1000 bytes; prints how many came back
//   --bytes N     one message of so many bytes, in fragments of 1000
//   --flood N     as many messages as that at once
//   --silent MS   says nothing for so long, then one message
//   --deaf yes    never answers a Ping
// and --deflate yes|no, --origin ORIGIN. Prints { opened, status, retryAfter, echoed, pings, code }.

const crypto = require('crypto');
const WebSocket = require('ws');
const { options, run } = require('./common');

const given = options();

run(
  () =>
    new Promise((resolve) => {
      const result = { opened: false, status: 0, echoed: 0, pings: 0, code: null };
      const socket = new WebSocket(given.url, {
        autoPong: given.deaf !== 'yes',
        perMessageDeflate: given.deflate === 'yes' ? { threshold: 0 } : false,
        headers: given.origin ? { Origin: given.origin } : {},
      });
      let rounds = Number(given.rounds || 0);
      socket.on('ping', () => {
        result.pings += 1;
      });
      socket.on('message', () => {
        result.echoed += 1;
        if (rounds > 1) {
          rounds -= 1;
          socket.send('x'.repeat(1000));
        } else if (given.rounds || given.silent) {
          socket.close(1000);
        }
      });
      socket.on('open', () => {
        result.opened = true;
        if (rounds > 0) socket.send('x'.repeat(1000));
        for (let i = 0; i < Number(given.flood || 0); i += 1) socket.send('x');
        const bytes = Number(given.bytes || 0);
        for (let sent = 0; sent < bytes; sent += 1000) {
          const piece = crypto.randomBytes(Math.min(1000, bytes - sent));
          socket.send(piece, { binary: true, fin: sent + 1000 >= bytes });
        }
        if (given.silent) setTimeout(() => socket.send('still here'), Number(given.silent));
      });
      socket.on('unexpected-response', (request, response) => {
        result.status = response.statusCode;
        result.retryAfter = response.headers['retry-after'] || null;
        resolve(result);
      });
      socket.on('error', () => {});
      socket.on('close', (code) => {
        result.code = code;
        resolve(result);
      });
    }),
);
