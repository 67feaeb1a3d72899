// Every page that is reached by links, by whoever may: whole, light, small, and open to everybody.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { House, OPERATORS, go, makeKey } from './house.mjs';
import { inspect, inspectAt, inspectable } from './inspection.mjs';

const LONG_NAME = 'production-batch-summariser-of-the-northern-region-with-a-name-that-nobody-would-type-twice';
// Enough for a full page of usage.
const REQUESTS = 120;
// Of pages that differ in an id or a filter only, so many are opened.
const ALIKE_MAX = 2;

let house;
before(async () => {
  house = await House.open();
  await liveIn();
});
after(() => house?.close());

// A house with a past: pages with nothing on them show little of what may be wrong.
const liveIn = async () => {
  const ada = await house.customer('ada.with-a-rather-long-name@accounting.example.com', { dollars: '1234.56' });
  const secret = await makeKey(ada, LONG_NAME);
  const revoked = await makeKey(ada, 'revoked');
  await go(ada, 'Keys');
  await ada.getByRole('link', { name: 'revoked' }).click();
  await ada.getByRole('button', { name: 'Revoke this key' }).click();
  await ada.getByText('Revoked', { exact: true }).waitFor();
  await go(ada, 'Plan');
  await ada.getByRole('button', { name: /^max: / }).click();
  await ada.getByRole('status').waitFor();
  await house.command('voucher', 'create', '5', '--count', '3', '--note', 'For whoever comes to the stand at the fair');
  const asked = Array.from({ length: REQUESTS }, (_, at) => house.complete(at % 2 ? secret : house.key, at % 9 ? 'demo' : 'gone'));
  await Promise.all([...asked, house.complete(revoked)]);
  house.ada = ada;
};

// The same for pages that differ in ids and values only.
const kindOf = (url) => {
  const path = url.pathname.replace(/\/[a-z]+_[^/]{8,}/g, '/id').replace(/\/[0-9a-f-]{32,}/g, '/id');
  return [path, ...[...url.searchParams.keys()].sort()].join('-').replaceAll('/', '-');
};

// Follows all links from a page on, and inspects what they lead to.
const crawl = async (t, page, start, who) => {
  const waiting = [[start, start.replaceAll('/', '-')]];
  const seen = new Set([start]);
  const alike = new Map();
  await inspectable(page);
  while (waiting.length > 0) {
    const [path, name] = waiting.shift();
    await t.test(`${who}: ${path}`, async (t) => {
      const asked = await page.request.get(path);
      assert.equal(asked.status(), 200);
      if (!asked.headers()['content-type'].startsWith('text/html')) return;
      const wrong = await inspectAt(page, path, `${who}${name}`);
      t.diagnostic(`${page.kib} KiB`);
      for (const link of await page.locator('a[href]').all()) {
        const url = new URL(await link.getAttribute('href'), page.url());
        if (url.origin !== house.url) continue;
        const [next, kind] = [url.pathname + url.search, kindOf(url)];
        const times = alike.get(kind) ?? 0;
        if (seen.has(next) || times >= ALIKE_MAX) continue;
        seen.add(next);
        alike.set(kind, times + 1);
        waiting.push([next, times > 0 ? `${kind}-${times + 1}` : kind]);
      }
      assert.deepEqual(wrong, []);
    });
  }
  return seen;
};

test('an inspection finds what is wrong', async () => {
  const page = await inspectable(await house.visitor());
  await page.goto('/sign-in');
  assert.deepEqual(await inspect(page), []);
  await page.evaluate(() => {
    const add = (tag, given, to = document.querySelector('main')) => to.append(Object.assign(document.createElement(tag), given));
    add('p', { id: 'wide', textContent: 'wide' });
    document.querySelector('#wide').style.width = '400px';
    add('p', { id: 'faint', textContent: 'faint' });
    document.querySelector('#faint').style.color = '#888';
    add('input', { id: 'nameless' });
    add('script', { textContent: 'document.title = "never"' });
    add('img', { id: 'foreign', alt: '', src: 'http://localhost:1/pixel.png' });
  });
  const wrong = (await inspect(page)).join('\n');
  for (const part of ['#faint', '#nameless', 'Executing inline script', 'http://localhost:1/pixel.png']) {
    assert.ok(wrong.includes(part), `${part} in ${wrong}`);
  }
  assert.match(wrong, /360 px: \d+ px beyond the edge, .*id="wide"/);
  assert.match((await inspectAt(page, '/nowhere')).join(), /status 404/);
  assert.notEqual(await page.title(), 'never');
});

test('pages for anybody', async (t) => {
  await crawl(t, await house.visitor(), '/sign-in', 'anybody');
});

test('pages of a customer', async (t) => {
  const seen = await crawl(t, house.ada, '/', 'customer');
  for (const path of ['/overview', '/keys', '/keys/new', '/usage', '/models', '/credit', '/plan', '/start', '/settings']) {
    assert.ok(seen.has(path), path);
  }
});

test('pages of a customer who has done nothing yet', async (t) => {
  await crawl(t, await house.customer('new@example.com'), '/', 'newcomer');
});

test('pages of the operator', async (t) => {
  const seen = await crawl(t, await house.operator(), '/', 'operator');
  const own = ['accounts', 'people', 'vouchers', 'keys', 'revenue', 'providers', 'live', 'audit', 'configuration'];
  for (const page of own) assert.ok(seen.has(`/operator/${page}`), page);
});

test('pages that answer forms', async (t) => {
  const page = await inspectable(await house.operator());
  // The browser itself complains of a page with another status than 200.
  const wrongOn = async (name) => (await inspect(page, `form-${name}`)).filter((each) => !each.includes('Failed to load resource'));
  const each = (name, answer) => t.test(name, async () => {
    await answer();
    assert.deepEqual(await wrongOn(name.replaceAll(' ', '-')), []);
  });
  await each('a new key', () => makeKey(page, LONG_NAME));
  await each('a key refused', async () => {
    await page.goto('/keys/new');
    await page.getByLabel('Name').fill('greedy');
    await page.getByLabel('Requests a minute').fill('1000000');
    await page.getByLabel('Budget, USD').fill('much');
    await page.getByRole('button', { name: 'Make the key' }).click();
    await page.getByRole('alert').waitFor();
    assert.equal(await page.getByLabel('Budget, USD').inputValue(), 'much', 'what was typed is kept');
  });
  await each('new vouchers', async () => {
    await go(page, 'Vouchers', OPERATORS);
    await page.getByLabel('How many').fill('20');
    await page.getByRole('button', { name: 'Make vouchers' }).click();
    await page.locator('pre.codes').waitFor();
  });
  await each('an invitation', async () => {
    await go(page, 'People', OPERATORS);
    await page.getByLabel('E-mail address').fill('bea@example.com');
    await page.getByLabel("Account's id").fill(house.ada.accountId);
    await page.getByRole('button', { name: 'Invite' }).click();
    await page.locator('#link').waitFor();
  });
  await each('an account refused', async () => {
    await go(page, 'Accounts', OPERATORS);
    await page.getByLabel('Name', { exact: true }).fill('Ada and sons');
    await page.getByLabel('Credit in USD').fill('much');
    await page.getByRole('button', { name: 'Make it' }).click();
    await page.getByRole('alert').waitFor();
    assert.equal(await page.getByLabel('Name', { exact: true }).inputValue(), 'Ada and sons', 'what was typed is kept');
  });
  await each('an account with an invitation', async () => {
    await page.getByLabel('Credit in USD').fill('5');
    await page.getByLabel('E-mail address to invite').fill('cay@example.com');
    await page.getByRole('button', { name: 'Make it' }).click();
    await page.locator('#invitation-link').waitFor();
  });
  await each('a voucher refused', async () => {
    await go(page, 'Plan');
    await page.getByLabel('Code').fill('nonsense');
    await page.getByRole('button', { name: 'Redeem' }).click();
    await page.getByRole('alert').waitFor();
  });
  await each('no such page', () => page.goto('/nowhere'));
  await each('a link to look at', async () => {
    const link = await house.command('user', 'sign-in-link', 'operator@localhost');
    await page.goto(link.url);
  });
  await each('an invitation to take', async () => {
    const link = await house.command('user', 'invite', 'bea@example.com');
    await page.goto(link.url);
  });
  await each('a wrong password', async () => {
    await page.context().clearCookies();
    await page.goto('/sign-in');
    await page.getByLabel('E-mail address').fill('bea@example.com');
    await page.getByLabel('Password').fill('wrong wrong wrong');
    await page.getByRole('button', { name: 'Sign in' }).click();
    await page.getByRole('alert').waitFor();
  });
});

test('a page is painted before its script has come', async () => {
  const page = await house.operator();
  let release;
  const held = new Promise((resolve) => (release = resolve));
  await page.route('**/assets/script*', async (route) => {
    await held;
    await route.continue();
  });
  await page.goto('/overview', { waitUntil: 'commit' });
  await page.waitForFunction(() => performance.getEntriesByName('first-contentful-paint').length === 1);
  assert.ok(await page.getByRole('heading', { name: 'Overview' }).isVisible());
  assert.notEqual(await page.evaluate(() => document.readyState), 'complete');
  release();
  await page.waitForLoadState('load');
});
