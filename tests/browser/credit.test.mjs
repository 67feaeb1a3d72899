// What the operator does for an account, its customer sees.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { House, OPERATORS, PASSWORD, figureOf, go, rowsOf, takeInvitation } from './house.mjs';

let house;
before(async () => (house = await House.open()));
after(() => house?.close());

test('an invited customer chooses a password, and sees what the operator credits', async () => {
  const operator = await house.operator();
  await go(operator, 'Accounts', OPERATORS);
  await operator.getByLabel('Name', { exact: true }).fill('Ada and sons');
  await operator.getByLabel('Plan').selectOption('free');
  await operator.getByLabel('E-mail address to invite').fill('Ada@Example.com');
  await operator.getByRole('button', { name: 'Make it' }).click();
  const link = (await operator.locator('#invitation-link').innerText()).trim();

  const ada = await house.visitor();
  await takeInvitation(ada, link);
  assert.equal(await figureOf(ada, 'Balance'), '$0.00');

  await go(operator, 'Accounts', OPERATORS);
  await operator.getByRole('link', { name: 'Ada and sons' }).click();
  await operator.getByLabel('Amount in USD').fill('12.34');
  await operator.getByLabel('Note').fill('for a good start');
  await operator.getByRole('button', { name: 'Change the balance' }).click();
  await operator.getByRole('status').waitFor();

  await go(ada, 'Overview');
  assert.equal(await figureOf(ada, 'Balance'), '$12.34');
  await ada.goto('/credit');
  const [credit] = await rowsOf(ada, 'Credit history');
  assert.deepEqual([credit.Amount, credit.Note], ['$12.34', 'for a good start']);
  assert.equal(await ada.getByRole('navigation', { name: OPERATORS }).count(), 0);
  assert.equal((await ada.request.get('/operator/accounts')).status(), 404);

  const again = await house.visitor();
  await again.goto('/credit');
  await again.getByLabel('E-mail address').fill('ada@example.com');
  await again.getByLabel('Password').fill(PASSWORD);
  await again.getByRole('button', { name: 'Sign in' }).click();
  await again.getByText('for a good start').waitFor();
  assert.equal(new URL(again.url()).pathname, '/credit', 'where one wanted to go');
  assert.deepEqual([...operator.complaints, ...ada.complaints, ...again.complaints], []);
});

test('what is going on shows on an open page, by itself', async () => {
  const page = await house.operator();
  await go(page, 'Live', OPERATORS);
  const ended = async () => Number(await figureOf(page, 'Ended since this process began'));
  const before = await ended();
  await house.complete(house.key);
  await page.waitForFunction(
    (before) => [...document.querySelectorAll('.figure')].some((figure) => Number(figure.textContent) === before + 1),
    before,
  );
  assert.equal(await ended(), before + 1);
  assert.deepEqual(page.complaints, []);
});
