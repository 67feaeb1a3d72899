//! What machines ask of the relay: health and readiness.
