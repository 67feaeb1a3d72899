//! What commands print. The one place that writes to stdout and stderr directly; a closed pipe is not an error.

use std::io::Write;

use serde::Serialize;

/// A line on stdout.
pub(super) fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// An error on stderr, marked as this program's.
pub(super) fn error(message: &str) {
    let _ = writeln!(std::io::stderr().lock(), "tollgate: {message}");
}

/// A line on stderr that speaks for itself, such as `FILE:LINE: …`.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// One JSON document on stdout.
pub(super) fn json(document: &impl Serialize) {
    match serde_json::to_string(document) {
        Ok(text) => line(&text),
        // Only maps with keys that are no text can fail, and no command prints one.
        Err(failure) => error(&failure.to_string()),
    }
}

/// A table on stdout, printed in as many parts as it comes in.
pub(super) struct Table<const COLUMNS: usize> {
    columns: [Column; COLUMNS],
    widths: [usize; COLUMNS],
}

/// A column's heading, and the side on which its cells stand.
#[derive(Clone, Copy)]
pub(super) enum Column {
    Left(&'static str),
    Right(&'static str),
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(super) fn new(columns: [Column; COLUMNS]) -> Self {
        Self { columns, widths: [0; COLUMNS] }
    }

    /// Prints rows, after the headings where they are the first. Columns are as wide as their widest cell so far.
    pub(super) fn rows(&mut self, rows: &[[String; COLUMNS]]) {
        let is_first = self.widths == [0; COLUMNS];
        let headings = self.columns.map(|column| match column {
            Column::Left(heading) | Column::Right(heading) => heading.to_owned(),
        });
        for row in std::iter::once(&headings).chain(rows) {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let headings = is_first.then_some(&headings);
        for row in headings.into_iter().chain(rows) {
            line(&self.aligned(row));
        }
    }

    fn aligned(&self, row: &[String; COLUMNS]) -> String {
        let cells = row.iter().zip(self.columns).zip(self.widths);
        let cells = cells.map(|((cell, column), width)| match column {
            Column::Left(_) => format!("{cell:<width$}"),
            Column::Right(_) => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    }
}
