// A key that is revoked on its page is refused within two seconds.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { House, go, makeKey, rowsOf, until } from './house.mjs';

const REFUSED_MS_MAX = 2_000;

let house;
before(async () => (house = await House.open()));
after(() => house?.close());

test('a key revoked on its page is refused within two seconds, and stays so', async (t) => {
  const page = await house.operator();
  const [lost, kept] = [await makeKey(page, 'lost'), await makeKey(page, 'kept')];
  assert.deepEqual([await house.statusOf(lost), await house.statusOf(kept)], [200, 200]);
  await go(page, 'Keys');
  await page.getByRole('link', { name: 'lost' }).click();
  const began = performance.now();
  await page.getByRole('button', { name: 'Revoke this key' }).click({ noWaitAfter: true });
  const isRefused = async () => (await house.statusOf(lost)) === 401;
  await until(isRefused, 'a revoked key is refused', { ms_max: REFUSED_MS_MAX, every_ms: 20 });
  t.diagnostic(`refused ${Math.round(performance.now() - began)} ms after the click`);

  await page.getByText('Revoked', { exact: true }).waitFor();
  assert.equal(await page.getByRole('button', { name: 'Revoke this key' }).count(), 0);
  assert.equal((await house.complete(lost)).status, 401);
  assert.equal(await house.statusOf(kept), 200, 'no other key is meant');
  await go(page, 'Keys');
  const status = Object.fromEntries((await rowsOf(page, 'Your keys')).map((row) => [row.Name, row.Status]));
  assert.deepEqual([status.lost, status.kept], ['revoked', 'active']);
});
