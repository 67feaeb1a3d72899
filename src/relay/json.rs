//! A scanner over JSON text: where values begin and end, without building them.
