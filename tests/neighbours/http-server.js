'use strict';

// An HTTP application server.  --port N | --socket PATH; --cert FILE --key FILE for https
// /see: what it was asked, as JSON; /echo: length and SHA-256 of the body; /big?bytes=N; /sse; /status?code=N

const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const https = require('https');
const { endWithParent, listen, options } = require('./common');

const given = options();
const piece = Buffer.alloc(65536, '0123456789abcde\n');

const answer = (request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://x');
  const json = (value) => {
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify(value));
  };
  if (pathname === '/echo') {
    const hash = crypto.createHash('sha256');
    let length = 0;
    request.on('data', (data) => {
      hash.update(data);
      length += data.length;
    });
    request.on('end', () => json({ length, sha256: hash.digest('hex'), method: request.method }));
    return;
  }
  request.resume();
  if (pathname === '/big') {
    let left = Number(searchParams.get('bytes'));
    response.setHeader('Content-Type', 'application/octet-stream');
    if (searchParams.has('length')) {
      response.setHeader('Content-Length', left);
    }
    const more = () => {
      while (left > 0) {
        const part = left < piece.length ? piece.subarray(0, left) : piece;
        left -= part.length;
        if (!response.write(part)) {
          response.once('drain', more);
          return;
        }
      }
      response.end();
    };
    more();
  } else if (pathname === '/sse') {
    response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' });
    let count = 0;
    const timer = setInterval(() => {
      response.write(`id: ${++count}\ndata: event ${count}\n\n`);
      if (count === 5) {
        clearInterval(timer);
        response.end();
      }
    }, 200);
    response.on('close', () => clearInterval(timer));
  } else if (pathname === '/status') {
    response.statusCode = Number(searchParams.get('code'));
    response.end(`status ${response.statusCode}\n`);
  } else {
    json({ method: request.method, url: request.url, headers: request.headers, raw: request.rawHeaders, app: 'node' });
  }
};

const server = given.cert
  ? https.createServer({ cert: fs.readFileSync(given.cert), key: fs.readFileSync(given.key) }, answer)
  : http.createServer(answer);
endWithParent();
listen(server, given);
