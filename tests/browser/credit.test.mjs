// What the operator does for an account, its customer sees.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { House, PASSWORD, go, rowsOf, takeInvitation } from './house.mjs';

let house;
before(async () => (house = await House.open()));
after(() => house?.close());

const balanceOn = (page) => page.locator('.card', { has: page.getByRole('heading', { name: 'Balance' }) }).locator('.figure').innerText();

test('an invited customer chooses a password, and sees what the operator credits', async () => {
  const account = await house.command('account', 'create', 'Ada and sons', '--plan', 'free');
  const operator = await house.operator();
  await go(operator, 'People');
  await operator.getByLabel('E-mail address').fill('Ada@Example.com');
  await operator.getByLabel("Account's id").fill(account.id);
  await operator.getByRole('button', { name: 'Invite' }).click();
  const link = (await operator.locator('#link').innerText()).trim();

  const ada = await house.visitor();
  await takeInvitation(ada, link);
  assert.equal(await balanceOn(ada), '$0.00');
  await house.command('account', 'credit', account.id, '12.34', '--note', 'for a good start');
  await go(ada, 'Overview');
  assert.equal(await balanceOn(ada), '$12.34');
  await go(ada, 'Credit');
  const [credit] = await rowsOf(ada, 'Credit history');
  assert.deepEqual([credit.Amount, credit.Note], ['$12.34', 'for a good start']);
  assert.equal(await ada.getByRole('navigation').getByRole('link', { name: 'People' }).count(), 0);

  const again = await house.visitor();
  await again.goto('/credit');
  await again.getByLabel('E-mail address').fill('ada@example.com');
  await again.getByLabel('Password').fill(PASSWORD);
  await again.getByRole('button', { name: 'Sign in' }).click();
  await again.getByText('for a good start').waitFor();
  assert.equal(new URL(again.url()).pathname, '/credit', 'where one wanted to go');
  assert.deepEqual([...ada.complaints, ...again.complaints], []);
});
