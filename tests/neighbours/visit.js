'use strict';

// Headless Chromium opens a page in the home of somebody, with nothing ignored, and says how that went: {"status":200}
// or {"error":"…"}. Every name is this machine.  --chromium PATH --url URL --profile DIR --home DIR

const puppeteer = require('puppeteer-core');
const { options, run } = require('./common');

const given = options();

run(async () => {
  const env = { ...process.env, HOME: given.home };
  delete env.XDG_CONFIG_HOME;
  delete env.XDG_DATA_HOME;
  const browser = await puppeteer.launch({
    executablePath: given.chromium,
    headless: true,
    userDataDir: given.profile,
    env,
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
      '--host-resolver-rules=MAP * 127.0.0.1, EXCLUDE 127.0.0.1',
    ],
  });
  try {
    const page = await browser.newPage();
    const response = await page.goto(given.url, { waitUntil: 'load', timeout: 30000 });
    return { status: response.status() };
  } catch (error) {
    return { error: String(error.message) };
  } finally {
    await browser.close();
  }
});
