'use strict';

// Headless Chromium opens a page, waits until its socket is open, says {"ready":true}, waits until the event is shown,
// and keeps a picture.  --chromium PATH --url URL --profile DIR --spki HASH --shot FILE --text TEXT

const puppeteer = require('puppeteer-core');
const { options, print, run } = require('./common');

const given = options();

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
    const failures = [];
    page.on('pageerror', (error) => failures.push(String(error)));
    page.on('requestfailed', (request) => failures.push(`${request.url()} ${request.failure().errorText}`));
    const response = await page.goto(given.url, { waitUntil: 'load', timeout: 30000 });
    const open = () => document.getElementById('state')?.textContent === 'open';
    await page.waitForFunction(open, { timeout: 15000 }).catch(async (error) => {
      const state = await page.evaluate(() => document.body.innerText);
      throw new Error(`${error.message}: ${state} ${JSON.stringify(failures)}`);
    });
    const websocket = () => document.getElementById('transport').textContent === 'websocket';
    await page.waitForFunction(websocket, { timeout: 15000 });
    print({ ready: true });
    const shown = (text) => [...document.querySelectorAll('#events li')].some((item) => item.textContent === text);
    await page.waitForFunction(shown, { timeout: 20000 }, given.text);
    if (given.shot) {
      await page.screenshot({ path: given.shot });
    }
    return {
      status: response.status(),
      protocol: await page.evaluate(() => performance.getEntriesByType('navigation')[0].nextHopProtocol),
      secure: await page.evaluate(() => window.isSecureContext),
      transport: await page.evaluate(() => document.getElementById('transport').textContent),
      events: await page.evaluate(() => [...document.querySelectorAll('#events li')].map((item) => item.textContent)),
      failures,
    };
  } finally {
    await browser.close();
  }
});
