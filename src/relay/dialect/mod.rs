//! OpenAI's wire format to and from each provider's.
