'use strict';

// What every server and client here shares: arguments, an end when the test that started them is gone, results as JSON.

// `--name value` pairs, as an object.
exports.options = () => {
  const options = {};
  const words = process.argv.slice(2);
  for (let i = 0; i < words.length; i += 2) {
    if (!words[i].startsWith('--') || words[i + 1] === undefined) {
      throw new Error(`expected "--name value", got ${words.slice(i).join(' ')}`);
    }
    options[words[i].slice(2)] = words[i + 1];
  }
  return options;
};

// The test holds our standard input open: its end is the test's end.
exports.endWithParent = () => {
  process.stdin.resume();
  process.stdin.on('end', () => process.exit(0));
  process.on('SIGTERM', () => process.exit(0));
};

// Listens on a free port of 127.0.0.1, on `--port`, or on `--socket`, and says where.
exports.listen = (server, options) => {
  const where = options.socket ? { path: options.socket } : { host: '127.0.0.1', port: Number(options.port || 0) };
  server.listen(where, () => {
    const address = server.address();
    console.log(JSON.stringify({ listening: typeof address === 'string' ? address : address.port }));
  });
};

exports.print = (value) => console.log(JSON.stringify(value));

// `promise`, or a failure that names `what` when it takes longer than `ms`.
exports.within = (ms, what, promise) => {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing within ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
};

// Ends the process with the outcome of `main`, whatever sockets are still open.
exports.run = (main) => {
  main().then(
    (result) => {
      process.stdout.write(JSON.stringify(result) + '\n', () => process.exit(0));
    },
    (error) => {
      process.stderr.write(`${error.stack || error}\n`, () => process.exit(1));
    },
  );
};
