'use strict';

// Sockets of a page in headless Chromium, on the connection that the page came over.
// --chromium PATH --url URL --profile DIR --spki HASH; --mode echo|socketio|switched|left; --script FILE for socketio

const puppeteer = require('puppeteer-core');
const { options, print, run } = require('./common');

const given = options();

// What runs in the page.
const openInPage = (path) =>
  new Promise((resolve, reject) => {
    const socket = new WebSocket(`wss://${location.host}${path}`);
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => resolve(socket);
    socket.onerror = () => reject(new Error('the socket failed'));
    socket.onclose = (event) => reject(new Error(`the socket closed: ${event.code}`));
  });
const echoInPage = (socket, message) =>
  new Promise((resolve, reject) => {
    socket.onmessage = ({ data }) => resolve(data);
    socket.onclose = (event) => reject(new Error(`the socket closed: ${event.code}`));
    socket.send(message);
  });
const closeInPage = (socket, code) =>
  new Promise((resolve) => {
    socket.onclose = (event) => resolve([event.code, event.wasClean]);
    socket.close(code);
  });

const modes = {
  // --sockets N at once, with a fetch beside them; each echoes a text and 1 MiB, and closes.
  async echo(page) {
    return page.evaluate(async (count) => {
      const sockets = await Promise.all([...Array(count)].map(() => open_('/live')));
      const texts = await Promise.all(sockets.map((socket, i) => echo_(socket, `héllo ${i} ✓`)));
      const bytes = new Uint8Array(1 << 20).map((_, i) => (i * 31) % 253);
      const back = new Uint8Array(await echo_(sockets[0], bytes));
      const page = await (await fetch('/')).text();
      const codes = await Promise.all(sockets.map((socket) => close_(socket, 4001)));
      return {
        texts: texts.every((text, i) => text === `héllo ${i} ✓`),
        bytes: back.length === bytes.length && back.every((byte, i) => byte === bytes[i]),
        extensions: sockets[0].extensions,
        page: page.length > 0,
        codes: [...new Set(codes.map(String))],
      };
    }, Number(given.sockets));
  },

  // Socket.IO in the page: straight to the socket, and by way of polling.
  async socketio(page) {
    await page.addScriptTag({ path: given.script });
    return page.evaluate(async () => {
      const results = {};
      for (const transports of [['websocket'], ['polling', 'websocket']]) {
        const socket = io({ transports, reconnection: false, forceNew: true });
        await new Promise((resolve, reject) => {
          socket.on('connect', resolve);
          socket.on('connect_error', reject);
        });
        const { engine } = socket.io;
        if (engine.transport.name !== 'websocket') {
          await new Promise((resolve) => engine.once('upgrade', resolve));
        }
        const text = await socket.timeout(10000).emitWithAck('echo', 'héllo ✓');
        const large = await socket.timeout(10000).emitWithAck('echo', new Uint8Array(65536).fill(7));
        results[transports[0]] = [engine.transport.name, text, large.byteLength];
        socket.disconnect();
      }
      return results;
    });
  },

  // Has a socket, says so, and opens another when the test has had its say: twice, with the first still open.
  async switched(page) {
    await page.evaluate(async () => (window.first = await open_('/live')));
    print({ ready: true });
    await page.waitForFunction(
      async () => (await (await fetch('/switch', { cache: 'no-store' })).text()).includes('off'),
      { timeout: 20000, polling: 100 },
    );
    return page.evaluate(async () => {
      const later = [];
      for (let i = 0; i < 3; i++) {
        const socket = await open_('/live').catch((error) => error);
        later.push(socket instanceof Error ? socket.message : await echo_(socket, `later ${i}`));
      }
      return { later, first: await echo_(window.first, 'first') };
    });
  },

  // Leaves the page without closing its socket.
  async left(page) {
    await page.evaluate(async () => echo_((window.first = await open_('/live')), 'x'));
    await page.close();
    print({ ready: true });
    await new Promise((resolve) => setTimeout(resolve, Number(given.ms)));
    return {};
  },
};

run(async () => {
  const browser = await puppeteer.launch({
    executablePath: given.chromium,
    headless: true,
    userDataDir: given.profile,
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      '--disable-default-apps',
      '--host-resolver-rules=MAP *.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
      `--ignore-certificate-errors-spki-list=${given.spki}`,
    ],
  });
  try {
    const page = await browser.newPage();
    await page.goto(given.url, { waitUntil: 'load', timeout: 30000 });
    const protocol = await page.evaluate(() => performance.getEntriesByType('navigation')[0].nextHopProtocol);
    await page.evaluate(`window.open_ = ${openInPage}; window.echo_ = ${echoInPage}; window.close_ = ${closeInPage}; 0`);
    return { protocol, ...(await modes[given.mode](page)) };
  } finally {
    await browser.close();
  }
});
