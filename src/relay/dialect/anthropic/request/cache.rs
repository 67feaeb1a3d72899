//! `cache_control`: where the prompt's cache may end, as the client marks it.

use super::refuse::Path;
use crate::relay::json::Cursor;
use crate::relay::refusal::Refusal;

/// How many places Anthropic lets a request mark.
const MARKS_MAX: usize = 4;

/// Counts the marks of a request.
#[derive(Debug, Default)]
pub(super) struct CacheMarks {
    count: usize,
}

/// A mark: an object, as the client wrote it.
pub(super) type CacheMark<'a> = Option<&'a [u8]>;

impl CacheMarks {
    /// Counts a mark that will be sent.
    pub(super) fn count(&mut self, mark: CacheMark<'_>, path: &Path<'_>) -> Result<(), Refusal> {
        self.count += usize::from(mark.is_some());
        if self.count > MARKS_MAX {
            let message =
                format!("At most {MARKS_MAX} parts, messages and tools of a request may have 'cache_control'.");
            return Err(path.field("cache_control").invalid(message));
        }
        Ok(())
    }
}

/// Reads a `cache_control` member.
pub(super) fn read_mark<'a>(path: &Path<'_>, cursor: &mut Cursor<'a>) -> Result<CacheMark<'a>, Refusal> {
    path.field("cache_control").optional_object(cursor)
}

/// Appends it as the last member of an object that is open.
pub(super) fn write_mark(out: &mut Vec<u8>, mark: CacheMark<'_>) {
    if let Some(mark) = mark {
        out.extend_from_slice(b",\"cache_control\":");
        out.extend_from_slice(mark);
    }
}
