'use strict';

// Many Socket.IO sessions at once, each of which counts events both ways. Every other one stays with polling, the rest
// upgrade; half of each kind keeps no cookies and comes from another origin, partly by fetch.
// --url URL; --sessions N; --cookies kept: none are blocked; --pace MS between two events of a session; --there FILE: says there who is with which server, once all are there;
// --more FILE: when that file is there, --later N further ones are opened, and after --events N more of each it ends.

const fs = require('fs');
const https = require('https');
const { io } = require('socket.io-client');
const { Fetch } = require('engine.io-client');
const { options, print, run } = require('./common');

const given = options();
const [sessions, later, pace, events] = ['sessions', 'later', 'pace', 'events'].map((name) => Number(given[name]));
const agent = new https.Agent({ keepAlive: true });
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const all = [];

class Session {
  constructor(index) {
    Object.assign(this, { index, node: null, sent: 0, received: 0, total: 0, broken: null, losses: [], refused: [] });
    const [upgrades, fetches] = [index % 2 === 1, index % 8 === 0];
    const blocked = given.cookies !== 'kept' && index % 4 < 2;
    this.socket = io(given.url, {
      agent,
      forceNew: true,
      reconnectionDelay: 200,
      reconnectionDelayMax: 1000,
      transports: upgrades ? ['polling', 'websocket'] : [fetches ? Fetch : 'polling'],
      withCredentials: !blocked,
      // Undefined: the client would keep the cookies of an earlier session in an object that it is given.
      extraHeaders: blocked ? { Origin: 'https://elsewhere.test' } : undefined,
    });
    this.upgrades = upgrades;
    this.socket.on('connect', () => this.ask());
    this.socket.on('disconnect', (why, details) => this.lose(why, details));
    this.socket.on('tock', (number) => this.hear(number));
    this.socket.on('broken', (why) => this.breaks(`tick ${why}`));
    this.socket.on('connect_error', (error) => this.refused.push(`${error.message} ${JSON.stringify(error.description)}`));
    this.timer = setInterval(() => this.tick(), pace);
  }

  // Which server has it. Whoever is asked later must be the same.
  async ask() {
    const id = this.socket.id;
    const { node } = await new Promise((resolve) => this.socket.emit('who', resolve));
    if (this.socket.id === id) {
      if (this.node && this.node !== node) {
        this.breaks(`went from ${this.node} to ${node}`);
      }
      this.node = node;
    }
  }

  breaks(why) {
    this.broken = this.broken || `session ${this.index}: ${why}`;
  }

  lose(why, details) {
    this.losses.push({ node: this.node, why: `${why} ${JSON.stringify((details && details.description) || '')}` });
    [this.node, this.sent, this.received] = [null, 0, 0];
  }

  hear(number) {
    if (number !== ++this.received) {
      this.breaks(`tock ${number} came in the place of ${this.received}`);
    }
    this.total++;
  }

  // Up to three are under way at once.
  tick() {
    if (this.node && this.sent - this.received < 3) {
      this.socket.emit('tick', ++this.sent);
    }
  }

  // The names of what it keeps.
  cookies() {
    const jar = this.socket.io.engine._cookieJar;
    return jar ? [...jar.cookies].map(([name]) => name).join() : 'blocked';
  }

  isThere() {
    const { connected, io: manager } = this.socket;
    return connected && this.node && (!this.upgrades || manager.engine.transport.name === 'websocket');
  }
}

async function open(count) {
  for (let i = 0; i < count; i++) {
    all.push(new Session(all.length));
    // So many may be on their way at once.
    while (all.filter((session) => !session.isThere()).length > 50) {
      await pause(10);
    }
  }
  await until(() => all.every((session) => session.isThere()));
}

async function until(condition) {
  while (!condition()) {
    await pause(20);
  }
}

const tally = (words) => words.reduce((counts, word) => ({ ...counts, [word]: (counts[word] || 0) + 1 }), {});
const nodes = () => tally(all.map((session) => session.node));

run(async () => {
  print({ ready: true });
  await open(sessions);
  await until(() => all.every((session) => session.total > 0));
  fs.writeFileSync(given.there, JSON.stringify({ nodes: nodes() }));
  await until(() => fs.existsSync(given.more));
  await open(later);
  const before = all.map((session) => session.total);
  await until(() => all.every((session, i) => session.total >= before[i] + events && session.isThere()));
  await Promise.all(all.map((session) => session.ask()));
  all.forEach((session) => clearInterval(session.timer));
  await until(() => all.every((session) => session.sent === session.received));
  const losses = all.flatMap((session) => session.losses);
  return {
    nodes: nodes(),
    events: all.reduce((sum, session) => sum + session.total, 0),
    broken: all.map((session) => session.broken).filter(Boolean),
    lost: tally(losses.map((loss) => loss.node)),
    why: tally(losses.map((loss) => loss.why)),
    refused: tally(all.flatMap((session) => session.refused)),
    cookies: tally(all.map((session) => session.cookies())),
  };
});
