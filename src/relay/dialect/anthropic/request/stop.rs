//! `stop`: where the model is to end.

use super::fields::Fields;
use super::refuse::Path;
use crate::relay::dialect::anthropic::text::{is_blank, push_string};
use crate::relay::json::{Cursor, Kind, RawStr};
use crate::relay::refusal::Refusal;

/// Appends `stop_sequences`. Anthropic takes none that is blank.
pub(super) fn write_stop(out: &mut Vec<u8>, fields: &mut Fields<'_>) -> Result<(), Refusal> {
    let Some(json) = fields.stop else { return Ok(()) };
    let path = Path::Field("stop");
    let mut sequences: Vec<RawStr<'_>> = Vec::new();
    let mut cursor = Cursor::new(json);
    if cursor.kind()? == Kind::String {
        sequences.push(cursor.string()?);
    } else {
        path.items(&mut cursor, |path, cursor| {
            sequences.push(path.string(cursor)?);
            Ok(())
        })?;
    }
    let asked = sequences.len();
    sequences.retain(|sequence| !is_blank(*sequence));
    if sequences.len() < asked {
        fields.drop("stop");
    }
    for (index, sequence) in sequences.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b",\"stop_sequences\":[" } else { b"," });
        push_string(out, *sequence);
    }
    if !sequences.is_empty() {
        out.push(b']');
    }
    Ok(())
}
