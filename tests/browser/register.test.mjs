// Open registration: whoever comes has an account, and what there is to begin with.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { House, PASSWORD, figureOf, makeKey, textOf } from './house.mjs';
import { inspect, inspectable } from './inspection.mjs';

let house;
before(async () => (house = await House.open()));
after(() => house?.close());

test('who registers has credit to begin with, and a first answer', async () => {
  const page = await inspectable(await house.visitor());
  await page.goto('/sign-in');
  assert.equal(await page.getByRole('link', { name: 'Register' }).count(), 0, 'closed until it is opened');
  await house.configure('\n[dashboard]\nregistration = true\nstarting_credit_usd = "1.50"\n', async () => {
    await page.reload();
    return (await page.getByRole('link', { name: 'Register' }).count()) === 1;
  });
  await page.getByRole('link', { name: 'Register' }).click();
  assert.deepEqual(await inspect(page, 'anybody-register'), []);
  await page.getByLabel('E-mail address').fill('bea@example.com');
  await page.getByLabel('Password').fill(PASSWORD);
  await page.getByRole('button', { name: 'Make an account' }).click();
  assert.equal(await figureOf(page, 'Balance'), '$1.50');
  assert.ok(textOf(await house.complete(await makeKey(page, 'first'))).length > 0);
  assert.deepEqual(page.complaints, []);
});
