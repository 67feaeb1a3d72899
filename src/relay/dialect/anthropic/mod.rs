//! Anthropic's Messages dialect: OpenAI's requests become `POST /v1/messages`, the answers become chat completions.
//!
//! The proxy adds what is no part of the body: `x-api-key` with the credential, `anthropic-version: 2023-06-01`, and
//! `content-type: application/json`. No beta header is needed for anything that is translated here.
//!
//! What differs from OpenAI, and how a client meets it:
//!
//! - **Thinking** comes out as `reasoning_content`, and once more as the extension `thinking_blocks`, which carries the
//!   signatures: `[{"type":"thinking","thinking","signature"} | {"type":"redacted_thinking","data"}]`. A whole answer has
//!   it in its message. A stream has it in one delta, before the finish, complete, with an `index` on each block: OpenAI's
//!   Python helper, which adds deltas up, keeps it as it is; so does its Node helper, which takes the last value of a field
//!   that it does not know; and a client that adds up by hand has one value to keep. Sent back on the assistant's message,
//!   with or without `index`, the blocks reach Anthropic byte for byte. Blocks that were never signed, because the
//!   answer was cut, are not in it: they could not be sent back.
//! - **`cache_control`** is accepted on parts of a message, on a message (for its last block) and on a tool.
//! - **Tool call ids** that Anthropic would refuse are rewritten, the same in the call and in its result; see
//!   [`request()`]. Ids of its own go out as they are.
//! - **A JSON schema** for a model that has no field for one is asked for as a tool that the model must call; its arguments
//!   come out as the content. Nothing has to be remembered from the request for that: the tool has a reserved name.
//! - **Fields of messages** that Anthropic has no place for (`name`, `refusal` beside a text, `reasoning_content`, `audio`
//!   of an earlier answer, whatever is unknown) are left out. So are unknown fields of parts. Unknown types of parts, roles
//!   and tools are refused, for they would be lost with all that is in them.
//!
//! Deliberately absent: server tools, files by id, the legacy `functions`. Requests with them are refused.

#[cfg(test)]
mod client;
mod error;
mod event;
mod reasoning;
#[cfg(test)]
mod recorded_requests;
#[cfg(test)]
mod recordings;
mod request;
mod stream;
mod text;
mod usage;
mod whole;
mod writer;

pub use error::map_error;
pub use request::{output_ceiling, request};
pub use stream::StreamTranslator;
pub use whole::{WHOLE_BYTES_MAX, WholeTranslator};

/// The name of the tool that stands for a JSON schema where the model has no field for one. Reserved: a request that has a
/// tool of that name is refused, and a call of it is the answer itself.
const SCHEMA_TOOL: &str = "answer_in_json_schema";
