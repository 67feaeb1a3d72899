// Plans by the month, paid from credit.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { House, figureOf, go, rowsOf } from './house.mjs';

let house;
before(async () => (house = await House.open()));
after(() => house?.close());

test('a plan is bought from credit, cancelled and kept', async () => {
  const page = await house.customer('ada@example.com', { dollars: '20' });
  await go(page, 'Plan');
  assert.equal(await figureOf(page, 'Plan'), 'free');
  await page.getByRole('button', { name: /^starter: / }).click();
  await page.getByRole('status').waitFor();
  assert.equal(await figureOf(page, 'Plan'), 'starter');
  assert.equal(await figureOf(page, 'Balance'), '$11.00');
  await page.getByText('It renews by itself.').waitFor();
  const [month] = await rowsOf(page, 'Months you have had');
  assert.deepEqual([month.Plan, month.Price], ['starter', '$9.00']);

  await page.getByRole('button', { name: /^Cancel/ }).click();
  await page.getByText('It is cancelled, and ends then.').waitFor();
  await page.getByRole('button', { name: /^Keep/ }).click();
  await page.getByText('It renews by itself.').waitFor();
});

test('a plan that costs more than there is, is refused', async () => {
  const page = await house.customer('bea@example.com', { dollars: '1' });
  await go(page, 'Plan');
  await page.getByRole('button', { name: /^starter: / }).click();
  assert.match(await page.getByRole('alert').innerText(), /costs \$9\.00 and your balance is \$1\.00/);
  assert.equal(await figureOf(page, 'Plan'), 'free');
});
