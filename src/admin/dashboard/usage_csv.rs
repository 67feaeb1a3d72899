//! Usage as CSV: read from the store a part at a time, as fast as it is taken.
//!
//! What breaks off is not made to look whole: the connection breaks, and the browser says so.

use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::relay::meter::{UsageRecord, rfc3339};
use crate::store::{Key, Store, StoreError, UsageFilter, UsagePosition};

/// How many requests one file holds at most.
pub(super) const ROWS_MAX: u64 = 1_000_000;
/// How many are read at a time, and how many parts wait to be taken.
const PART_ROWS: u32 = 500;
const PARTS_WAITING_MAX: usize = 2;

const HEADINGS: &str = "started_at,request_id,key_id,key_name,model,status,input_tokens,cache_read_tokens,cache_write_5m_tokens,\
                        cache_write_1h_tokens,output_tokens,reasoning_tokens,cost_usd,first_token_ms,total_ms,estimated,interrupted\r\n";

/// How long a part may wait to be taken.
const WAITING_MAX: Duration = Duration::from_secs(60);

/// A part of the file, or its end: without, it broke off.
enum Part {
    Rows(Bytes),
    End,
}

/// The file broke off.
#[derive(Debug, thiserror::Error)]
#[error("the file broke off")]
struct BrokeOff;

struct Parts(Receiver<Part>);

impl Stream for Parts {
    type Item = Result<Bytes, BrokeOff>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|part| match part {
            Some(Part::Rows(rows)) => Some(Ok(rows)),
            Some(Part::End) => None,
            None => Some(Err(BrokeOff)),
        })
    }
}

/// The file.
pub(super) fn download(store: Store, filter: UsageFilter, keys: Vec<Key>) -> Response {
    let (parts, taken) = channel(PARTS_WAITING_MAX);
    tokio::spawn(async move {
        if let Err(error) = write(&store, &filter, keys, &parts).await {
            tracing::warn!(%error, "a file of usage broke off");
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"tollgate-usage.csv\""),
    ];
    (headers, Body::from_stream(Parts(taken))).into_response()
}

/// Writes the file for as long as somebody takes it.
async fn write(store: &Store, filter: &UsageFilter, keys: Vec<Key>, parts: &Sender<Part>) -> Result<(), StoreError> {
    let names: HashMap<String, String> = keys.into_iter().map(|key| (key.id, field(&key.name))).collect();
    let (mut after, mut rows) = (None, 0);
    let mut text = HEADINGS.to_owned();
    loop {
        let records = store.usage(filter, after.as_ref(), PART_ROWS).await?;
        after = records.last().map(UsagePosition::of);
        rows += records.len() as u64;
        let name = |record: &UsageRecord| names.get(&*record.key_id).map_or("", |name| name);
        text.extend(records.iter().map(|record| line(record, name(record))));
        if !is_taken(parts, Part::Rows(std::mem::take(&mut text).into())).await {
            return Ok(());
        }
        if records.len() < PART_ROWS as usize || rows >= ROWS_MAX {
            is_taken(parts, Part::End).await;
            return Ok(());
        }
    }
}

/// Whether there is still somebody who takes it.
async fn is_taken(parts: &Sender<Part>, part: Part) -> bool {
    matches!(tokio::time::timeout(WAITING_MAX, parts.send(part)).await, Ok(Ok(())))
}

fn line(record: &UsageRecord, key_name: &str) -> String {
    let usage = &record.usage;
    let first_token = record.first_token_ms.map(|milliseconds| milliseconds.to_string()).unwrap_or_default();
    format!(
        "{},{},{},{key_name},{},{},{},{},{},{},{},{},{},{first_token},{},{},{}\r\n",
        rfc3339(record.started_at_ms),
        record.request_id,
        record.key_id,
        field(&record.model),
        record.status,
        usage.input,
        usage.cache_read,
        usage.cache_write_5m,
        usage.cache_write_1h,
        usage.output,
        usage.reasoning,
        record.cost,
        record.total_ms,
        record.estimated,
        record.interrupted,
    )
}

/// A text as a field. Programs that calculate take what begins with certain signs for a formula; a quote keeps them from it.
fn field(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if is_formula { format!("'{text}") } else { text.to_owned() };
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_file_without_its_end_is_broken_and_not_short() {
        let (sender, taken) = channel(4);
        sender.send(Part::Rows("a".into())).await.unwrap();
        drop(sender);
        assert!(Body::from_stream(Parts(taken)).collect().await.is_err());
        let (sender, taken) = channel(4);
        sender.send(Part::Rows("a".into())).await.unwrap();
        sender.send(Part::End).await.unwrap();
        assert_eq!(Body::from_stream(Parts(taken)).collect().await.unwrap().to_bytes(), "a");
    }

    #[test]
    fn fields_are_quoted_and_never_formulas() {
        for (text, written) in [
            ("laptop", "laptop"),
            ("a, \"b\"", "\"a, \"\"b\"\"\""),
            ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
            ("@a,b", "\"'@a,b\""),
        ] {
            assert_eq!(field(text), written);
        }
    }
}
