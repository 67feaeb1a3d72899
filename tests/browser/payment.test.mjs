// Payment by card: from the page to Stripe's and back. Only a browser says whether the page's policy lets it go there.
//
// Stripe is scripted, its API as well as its page; nothing leaves this machine.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, before, test } from 'node:test';
import { House, figureOf, go } from './house.mjs';
import { inspect, inspectable } from './inspection.mjs';

const WEBHOOK_SECRET = 'whsec_the-endpoints-own';
const CHECKOUT = 'https://checkout.stripe.com';

let house;
let stripe;
let asked;
before(async () => {
  stripe = createServer(async (request, answer) => {
    const body = (await request.setEncoding('utf8').toArray()).join('');
    asked = Object.fromEntries(new URLSearchParams(body));
    const url = `${CHECKOUT}/c/pay/cs_1?${new URLSearchParams({ back: asked.success_url ?? '' })}`;
    answer.setHeader('content-type', 'application/json').end(JSON.stringify({ id: 'cs_1', url }));
  }).listen(0, '127.0.0.1');
  await once(stripe, 'listening');
  house = await House.open({ SK: 'sk_test_the-operators-own', WH: WEBHOOK_SECRET });
});
after(async () => {
  await house?.close();
  stripe?.close();
});

const tell = async (type, object) => {
  const now_seconds = Math.floor(Date.now() / 1000);
  const body = JSON.stringify({
    id: `evt_${type}`, object: 'event', api_version: '2024-06-20', type, created: now_seconds, livemode: false, data: { object },
  });
  const tag = createHmac('sha256', WEBHOOK_SECRET).update(`${now_seconds}.${body}`).digest('hex');
  const headers = { 'content-type': 'application/json', 'stripe-signature': `t=${now_seconds},v1=${tag}` };
  const answer = await fetch(`${house.url}/stripe/webhook`, { method: 'POST', headers, body });
  assert.equal(answer.status, 200, await answer.text());
};

test('credit is bought at Stripe, and is there when its event has come', async () => {
  const page = await inspectable(await house.customer('ada@example.com'));
  const payment = `
[payment.stripe]
secret_key = { env = "SK" }
webhook_secret = { env = "WH" }
base_url = "http://127.0.0.1:${stripe.address().port}"
top_up_usd = [10, 25]
`;
  await house.configure(payment, async () => {
    await page.goto('/plan');
    return (await page.getByRole('button', { name: 'Add $25' }).count()) === 1;
  });
  assert.deepEqual(await inspect(page, 'customer-plan-with-card'), []);

  await page.route(`${CHECKOUT}/**`, (route) => {
    const back = new URL(route.request().url()).searchParams.get('back');
    return route.fulfill({ contentType: 'text/html', body: `<!doctype html><a href="${back}">Pay</a>` });
  });
  await page.getByRole('button', { name: 'Add $25' }).click();
  await page.getByRole('link', { name: 'Pay' }).waitFor();
  assert.equal(new URL(page.url()).origin, CHECKOUT);
  assert.equal(asked.mode, 'payment');
  assert.equal(asked.client_reference_id, page.accountId);
  assert.equal(asked['line_items[0][price_data][unit_amount]'], '2500');

  await page.getByRole('link', { name: 'Pay' }).click();
  await page.getByText('Thank you.').waitFor();
  assert.equal(await figureOf(page, 'Balance'), '$0.00', 'coming back pays nothing');
  const session = {
    id: 'cs_1', object: 'checkout.session', mode: 'payment', payment_status: 'paid', currency: 'usd', payment_intent: 'pi_1',
    amount_total: 2_500, client_reference_id: page.accountId, metadata: { tollgate_account: page.accountId },
  };
  await tell('checkout.session.completed', session);
  await go(page, 'Plan');
  assert.equal(await figureOf(page, 'Balance'), '$25.00');
});
