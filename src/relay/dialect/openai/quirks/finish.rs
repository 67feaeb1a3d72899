//! Why an answer ended, in OpenAI's words.

/// What a vendor's `finish_reason` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    /// It has not: the empty string stands for null at some.
    None,
    /// It has, for this reason of OpenAI's.
    For(&'static str),
    /// It broke off, at the provider's.
    Failed,
}

/// Reads a `finish_reason` (WIRE §6, and §3 and §5 for what hosts pass on of other makers' models).
pub(super) fn finish(reason: &[u8]) -> Finish {
    let mut lower = [0; 40];
    let Some(lower) = lower.get_mut(..reason.len()) else { return Finish::For("stop") };
    lower.copy_from_slice(reason);
    lower.make_ascii_lowercase();
    match &*lower {
        b"" | b"null" => Finish::None,
        b"length" | b"max_tokens" | b"max_output_tokens" | b"model_length" | b"model_context_window_exceeded" => {
            Finish::For("length")
        }
        b"tool_calls" | b"tool_use" => Finish::For("tool_calls"),
        b"function_call" => Finish::For("function_call"),
        b"content_filter" | b"sensitive" | b"safety" | b"recitation" | b"refusal" => Finish::For("content_filter"),
        b"insufficient_system_resource" | b"network_error" | b"error" | b"abort" => Finish::Failed,
        _ => Finish::For("stop"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_reasons_are_openais() {
        for (reason, meaning) in [
            ("", Finish::None),
            ("stop", Finish::For("stop")),
            ("eos_token", Finish::For("stop")),
            ("MAX_TOKENS", Finish::For("length")),
            ("model_length", Finish::For("length")),
            ("model_context_window_exceeded", Finish::For("length")),
            ("sensitive", Finish::For("content_filter")),
            ("tool_calls", Finish::For("tool_calls")),
            ("insufficient_system_resource", Finish::Failed),
            ("network_error", Finish::Failed),
            ("a reason so long that nobody would have thought of it", Finish::For("stop")),
        ] {
            assert_eq!(finish(reason.as_bytes()), meaning, "{reason}");
        }
    }
}
