'use strict';

// pusher-js against a Pusher-protocol server.  --host NAME --port N; --tls true|false; --channel NAME; --events N
// Says {"ready":true,…} once subscribed, then waits for one event `news` (or N) and prints the last, the socket's id and
// the states that the connection went through.

const Pusher = require('pusher-js');
const { options, print, run, within } = require('./common');

const given = options();
const tls = given.tls !== 'false';

run(async () => {
  const pusher = new Pusher('app-key', {
    cluster: '',
    wsHost: given.host,
    wsPort: Number(given.port),
    wssPort: Number(given.port),
    forceTLS: tls,
    disableStats: true,
    enabledTransports: ['ws', 'wss'],
  });
  const errors = [];
  pusher.connection.bind('error', (error) => errors.push(error));
  const states = [];
  pusher.connection.bind('state_change', (change) => states.push(change.current));
  const channel = pusher.subscribe(given.channel || 'news');
  const wanted = Number(given.events || 1);
  let events = 0;
  const news = new Promise((resolve) =>
    channel.bind('news', (data) => {
      events += 1;
      if (events === wanted) {
        resolve(data);
      }
    }),
  );
  await within(
    10000,
    'subscribe',
    new Promise((resolve) => channel.bind('pusher:subscription_succeeded', resolve)),
  ).catch((error) => {
    throw new Error(`${error.message} ${JSON.stringify(errors)}`);
  });
  print({ ready: true, socket: pusher.connection.socket_id });
  const data = await within(20000, 'news', news);
  const socket = pusher.connection.socket_id;
  const seen = states.slice();
  pusher.disconnect();
  return { data, events, socket, states: seen };
});
