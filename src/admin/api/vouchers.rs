//! `/voucher-batches` and `/accounts/{id}/vouchers`: vouchers. Their codes are shown once, when they are made.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Api;
use super::answer::{Answer, Page, Refusals, Refused, json};
use super::input::{Id, Json, Listing, Query, unknown_cursor};
use crate::admin::sale::{self, VOUCHERS_MAX};
use crate::admin::{CreatedVouchersDocument, CreditDocument, VoucherBatchDocument, value};
use crate::relay::auth::VoucherCode;
use crate::store::{NewVouchers, StoreError};

/// Vouchers to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VoucherRequest {
    /// What each is worth: decimal USD, more than 0 and at most 1000, with at most 9 places after the point.
    #[schema(pattern = r"^[0-9]+(\.[0-9]{1,9})?$", example = "10.00")]
    amount: String,
    /// How many.
    #[schema(minimum = 1, maximum = 1000)]
    vouchers: u32,
    /// What to remember about them, one line.
    #[schema(max_length = 200, pattern = r"^[^\x00-\x20\x7F-\xA0][^\x00-\x1F\x7F-\x9F]*$")]
    note: Option<String>,
    /// When they cease to be good.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

/// A voucher to be redeemed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Redemption {
    /// As it was given; small letters, spaces and hyphens do not matter.
    #[schema(example = "7K3QX-9M2PD-0ZV4T-H8RAC")]
    code: String,
}

/// All batches of vouchers, newest first
#[utoipa::path(
    get, path = "/voucher-batches", operation_id = "list_voucher_batches", tag = "vouchers", params(Listing),
    responses((status = 200, description = "A page", body = Page<VoucherBatchDocument>), Refusals)
)]
pub(super) async fn list(State(api): State<Api>, Query(asked): Query<Listing>) -> Answer {
    let limit = asked.limit()?;
    if let Some(after) = &asked.after {
        api.store.voucher_batch(after).await.map_err(|error| match error {
            StoreError::UnknownVoucherBatch(_) => unknown_cursor(),
            error => error.into(),
        })?;
    }
    let rows = api.store.voucher_batches(asked.after.as_deref(), limit + 1).await?;
    let (page, now_ms) = (Page::cut(rows, limit, |batch| batch.id.clone()), api.now_ms());
    json(StatusCode::OK, &page.map(|batch| VoucherBatchDocument::new(&batch, now_ms)))
}

/// Make vouchers; their codes are shown this once
#[utoipa::path(
    post, path = "/voucher-batches", operation_id = "create_vouchers", tag = "vouchers", request_body = VoucherRequest,
    responses((status = 201, description = "The batch and its codes", body = CreatedVouchersDocument), Refusals)
)]
pub(super) async fn create(State(api): State<Api>, Json(asked): Json<VoucherRequest>) -> Answer {
    let amount = value::voucher_amount(&asked.amount).map_err(|message| Refused::value("amount", message))?;
    let note = asked.note.as_deref().map(value::name).transpose();
    let note = note.map_err(|message| Refused::value("note", message))?;
    let expires = asked.expires_at.as_deref().map(value::moment).transpose();
    let expires_at_ms = expires.map_err(|message| Refused::value("expires_at", message))?;
    if !(1..=VOUCHERS_MAX).contains(&asked.vouchers) {
        return Err(Refused::value("vouchers", "must be a whole number from 1 to 1000"));
    }
    let (new, now_ms) = (NewVouchers { amount, note, expires_at_ms }, api.now_ms());
    let (batch, codes) = sale::create_vouchers(&api.store, &new, asked.vouchers, now_ms).await?;
    json(StatusCode::CREATED, &CreatedVouchersDocument::new(&batch, &codes, now_ms))
}

/// One batch of vouchers, without their codes
#[utoipa::path(
    get, path = "/voucher-batches/{id}", operation_id = "show_voucher_batch", tag = "vouchers",
    params(("id" = String, Path, description = "`vchb_…`")),
    responses((status = 200, description = "The batch", body = VoucherBatchDocument), Refusals)
)]
pub(super) async fn show(State(api): State<Api>, Id(id): Id) -> Answer {
    json(StatusCode::OK, &VoucherBatchDocument::new(&api.store.voucher_batch(&id).await?, api.now_ms()))
}

/// Take back what was not redeemed of a batch
///
/// One that was taken back before stays as it was.
#[utoipa::path(
    delete, path = "/voucher-batches/{id}", operation_id = "revoke_vouchers", tag = "vouchers",
    params(("id" = String, Path, description = "`vchb_…`")),
    responses((status = 200, description = "The batch, taken back", body = VoucherBatchDocument), Refusals)
)]
pub(super) async fn revoke(State(api): State<Api>, Id(id): Id) -> Answer {
    let now_ms = api.now_ms();
    json(StatusCode::OK, &VoucherBatchDocument::new(&api.store.revoke_vouchers(&id, now_ms).await?, now_ms))
}

/// Give an account the credit of a voucher
///
/// Each voucher is good once. An account that tries ten codes in an hour that are no voucher's is not heard for a while.
#[utoipa::path(
    post, path = "/accounts/{id}/vouchers", operation_id = "redeem_voucher", tag = "vouchers",
    params(("id" = String, Path, description = "`acct_…`")), request_body = Redemption,
    responses((status = 201, description = "The credit", body = CreditDocument), Refusals)
)]
pub(super) async fn redeem(State(api): State<Api>, Id(id): Id, Json(asked): Json<Redemption>) -> Answer {
    let digest = VoucherCode::parse(&asked.code).map(|code| code.digest());
    let credited = api.store.redeem_voucher(&id, digest.as_ref(), api.now_ms()).await?;
    api.process.store_changed().await;
    json(StatusCode::CREATED, &CreditDocument::new(&id, credited.credit))
}
