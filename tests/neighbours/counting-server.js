'use strict';

// An HTTP application server that writes down what it is asked.  --name NAME --log FILE
// Each request is a line of the file, `METHOD path`, before it is answered with NAME, 5 ms later.

const fs = require('fs');
const http = require('http');
const { endWithParent, listen, options } = require('./common');

const given = options();

const server = http.createServer((request, response) => {
  request.resume();
  request.on('end', () => {
    fs.appendFileSync(given.log, `${request.method} ${request.url}\n`);
    setTimeout(() => {
      response.setHeader('Content-Length', given.name.length);
      response.end(request.method === 'HEAD' ? '' : given.name);
    }, 5);
  });
});

endWithParent();
listen(server, given);
