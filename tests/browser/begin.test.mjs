// From the link that quickstart prints to a request on the bill: as a person does it, with script and without.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { House, go, makeKey, rowsOf, secretOn, takeLink, textOf, until } from './house.mjs';

let house;
before(async () => (house = await House.open()));
after(() => house?.close());

const begins = async (page, link, name) => {
  await takeLink(page, link);
  const secret = await makeKey(page, name);
  assert.match(secret, /^tg_live_\w{20,}$/);
  const shown = await page.content();
  assert.ok(shown.includes(secret) && shown.includes(house.apiUrl), 'what to do with it stands there');

  const text = textOf(await house.complete(secret));
  assert.match(text, /^Hello from tollgate! .* on your bill\.$/);

  const isListed = async () => {
    await go(page, 'Usage');
    return (await rowsOf(page, 'Requests')).find((row) => row.Key === name);
  };
  const { answer: row } = await until(isListed, 'the request on the page of usage', { ms_max: 10_000, every_ms: 200 });
  assert.equal(row.Model, 'demo');
  assert.equal(row.Status, '200');
  assert.ok(Number(row.In) > 0 && Number(row.Out) > 0, JSON.stringify(row));
  assert.match(row.Cost, /^\$0\.0+[1-9]/);
  return secret;
};

test('from the printed link to a key, an answer with it, and the request on the bill', async () => {
  const page = await house.visitor();
  const secret = await begins(page, house.link, 'first');
  await go(page, 'Keys');
  await page.getByRole('link', { name: 'first' }).click();
  await page.getByText('Requests with this key are refused').waitFor();
  assert.ok(!(await page.content()).includes(secret.slice(8)), 'a key is shown once');
  assert.deepEqual(page.complaints, []);

  const late = await house.visitor();
  await late.goto(house.link);
  assert.equal(await late.getByRole('button', { name: 'Sign in' }).count(), 0, 'the link was good once');
});

test('the same without script', async () => {
  const { url } = await house.command('user', 'sign-in-link', 'operator@localhost');
  const page = await house.visitor({ javaScriptEnabled: false });
  await begins(page, url, 'scriptless');
  assert.equal(await page.getByRole('button', { name: 'Copy' }).count(), 0, 'no button that does nothing');
  for (const label of ['Overview', 'Models', 'Quick start', 'Account']) {
    await go(page, label);
    await page.locator('nav [aria-current=page]', { hasText: label }).waitFor();
  }
  await page.getByRole('button', { name: 'Sign out', exact: true }).click();
  await page.getByRole('button', { name: 'Sign in' }).waitFor();
});

test('a new key is gone when its page is loaded again, and is not made twice', async () => {
  const page = await house.operator();
  const secret = await makeKey(page, 'reloaded');
  await page.reload();
  const shown = await page.content();
  assert.ok(!shown.includes(secret.slice(8)), 'a key is shown once');
  await go(page, 'Keys');
  const made = (await rowsOf(page, 'Your keys')).filter((row) => row.Name === 'reloaded');
  assert.equal(made.length, 1, 'one form makes one key');
});

test('a key is copied by its button', async () => {
  const page = await house.operator({ permissions: ['clipboard-read', 'clipboard-write'] });
  const secret = await makeKey(page, 'copied');
  await page.getByRole('button', { name: 'Copy' }).first().click();
  await page.getByRole('button', { name: 'Copied' }).waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), secret);
  assert.equal(await secretOn(page), secret);
});
