// Vouchers: made by the operator, good once, for whoever is first.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { House, OPERATORS, figureOf, go, rowsOf } from './house.mjs';

let house;
before(async () => (house = await House.open()));
after(() => house?.close());

const redeem = async (page, code) => {
  await go(page, 'Plan');
  await page.getByLabel('Code').fill(code);
  await page.getByRole('button', { name: 'Redeem' }).click();
  return page.getByRole((await page.getByRole('alert').count()) > 0 ? 'alert' : 'status').innerText();
};

test('a voucher is redeemed once, and refused twice', async () => {
  const operator = await house.operator();
  await go(operator, 'Vouchers', OPERATORS);
  await operator.getByLabel('Worth').fill('7.50');
  await operator.getByLabel('How many').fill('2');
  await operator.getByRole('button', { name: 'Make vouchers' }).click();
  const codes = (await operator.locator('pre.codes').innerText()).trim().split('\n');
  assert.equal(codes.length, 2);

  await operator.reload();
  assert.equal((await rowsOf(operator, 'Batches')).length, 1, 'one form makes one batch');

  const ada = await house.customer('ada@example.com', { dollars: '1' });
  const bea = await house.customer('bea@example.com');
  assert.match(await redeem(ada, codes[0]), /redeemed\./);
  assert.equal(await figureOf(ada, 'Balance'), '$8.50');
  assert.match(await redeem(ada, codes[0]), /redeemed before/);
  assert.equal(await ada.getByLabel('Code').inputValue(), codes[0], 'what was typed is kept');
  assert.match(await redeem(bea, codes[0]), /redeemed before/);
  await go(bea, 'Plan');
  assert.equal(await figureOf(bea, 'Balance'), '$0.00');
  await go(ada, 'Plan');
  assert.equal(await figureOf(ada, 'Balance'), '$8.50');
  assert.match(await redeem(bea, codes[1].toLowerCase()), /redeemed\./, 'the other is good');

  await go(operator, 'Vouchers', OPERATORS);
  await operator.getByText('2 of 2').waitFor();
  assert.ok(!(await operator.content()).includes(codes[1]), 'codes are shown once');
});

test('a batch that is taken back is refused', async () => {
  const operator = await house.operator();
  const batch = await house.command('voucher', 'create', '3', '--note', 'taken back');
  await go(operator, 'Vouchers', OPERATORS);
  const row = operator.getByRole('row', { name: /taken back/ });
  await row.getByRole('button', { name: /Take back/ }).click();
  await operator.getByRole('status').waitFor();
  const cay = await house.customer('cay@example.com');
  assert.match(await redeem(cay, batch.codes[0]), /taken back/);
});
