//! Rows by the hundred in a statement: a statement is a way to the database and back, which costs as much as a dozen rows.
//!
//! SQLite takes them as `VALUES` of many rows with unnamed placeholders: numbered ones are looked up by name, each among all the
//! others. Postgres takes each column as an array.

use std::sync::Arc;

use sqlx::error::BoxDynError;
use sqlx::postgres::PgArguments;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, SqlSafeStr};

use super::connection::Connection;
use super::postgres::Statement;
use super::value::without_nul;
use crate::store::StoreError;

/// The most rows of a statement in SQLite. Twice as many cost hardly less, and each connection keeps its statements in memory.
const ROWS_MAX: usize = 256;

/// So many rows has each of the statements that a batch is made of in SQLite.
const ROW_COUNTS: [usize; 5] = [ROWS_MAX, 64, 16, 4, 1];

/// The most rows of a statement in Postgres, whose text is the same for any number.
const ROWS_OF_ARRAYS_MAX: usize = 4096;

/// A statement that puts rows into a table. In SQLite it has the texts for [`ROW_COUNTS`]: the same ones every time, so that each is
/// prepared once a connection.
pub(in crate::store) struct Insert {
    columns: usize,
    of_values: [Arc<String>; ROW_COUNTS.len()],
    of_arrays: Arc<String>,
}

impl Insert {
    pub(in crate::store) fn new(table: &str, columns: &[&str], on_conflict: &str) -> Self {
        let row = format!("({})", vec!["?"; columns.len()].join(", "));
        let names = columns.join(", ");
        let of_values = |rows| {
            let rows = vec![row.as_str(); rows].join(", ");
            Arc::new(format!("INSERT INTO {table} ({names}) VALUES {rows} {on_conflict}"))
        };
        let arrays = (1..=columns.len()).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ");
        let of_arrays = format!("INSERT INTO {table} ({names}) SELECT * FROM UNNEST({arrays}) {on_conflict}");
        Self { columns: columns.len(), of_values: ROW_COUNTS.map(of_values), of_arrays: Arc::new(of_arrays) }
    }

    /// Puts those rows in, each with the columns that `add` gives it, and says how many it touched.
    pub(in crate::store) async fn run<'a, R>(
        &self,
        connection: &mut Connection,
        mut rows: &'a [R],
        mut add: impl FnMut(&mut Cells<'_>, &'a R) -> Result<(), BoxDynError>,
    ) -> Result<u64, StoreError> {
        let mut touched = 0;
        match connection {
            Connection::Sqlite(held) => {
                for (count, text) in ROW_COUNTS.into_iter().zip(&self.of_values) {
                    while let Some((chunk, others)) = rows.split_at_checked(count) {
                        let mut values = SqliteArguments::default();
                        values.reserve(count * self.columns, 0);
                        let mut cells = Cells::Sqlite(&mut values);
                        chunk.iter().try_for_each(|row| add(&mut cells, row)).map_err(sqlx::Error::Encode)?;
                        let insert = sqlx::query_with(AssertSqlSafe(Arc::clone(text)), values);
                        touched += insert.execute(held.connection()).await?.rows_affected();
                        rows = others;
                    }
                }
            }
            Connection::Postgres(held) => {
                for chunk in rows.chunks(ROWS_OF_ARRAYS_MAX) {
                    let mut columns = Columns::new(self.columns);
                    let mut cells = Cells::Postgres(&mut columns);
                    chunk.iter().try_for_each(|row| add(&mut cells, row)).map_err(sqlx::Error::Encode)?;
                    let arguments = columns.into_arguments().map_err(sqlx::Error::Encode)?;
                    let sql = AssertSqlSafe(Arc::clone(&self.of_arrays)).into_sql_str();
                    touched += held.execute(Statement::new(sql, arguments)).await?;
                }
            }
        }
        Ok(touched)
    }
}

/// Where a row's columns go, one after the other.
pub(in crate::store) enum Cells<'c> {
    Sqlite(&'c mut SqliteArguments),
    Postgres(&'c mut Columns),
}

impl Cells<'_> {
    pub(in crate::store) fn integer(&mut self, value: i64) -> Result<(), BoxDynError> {
        match self {
            Cells::Sqlite(values) => values.add(value),
            Cells::Postgres(columns) => columns.integer(Some(value)),
        }
    }

    pub(in crate::store) fn maybe_integer(&mut self, value: Option<i64>) -> Result<(), BoxDynError> {
        match self {
            Cells::Sqlite(values) => values.add(value),
            Cells::Postgres(columns) => columns.integer(value),
        }
    }

    pub(in crate::store) fn flag(&mut self, value: bool) -> Result<(), BoxDynError> {
        match self {
            Cells::Sqlite(values) => values.add(value),
            Cells::Postgres(columns) => columns.flag(value),
        }
    }

    pub(in crate::store) fn text(&mut self, value: String) -> Result<(), BoxDynError> {
        match self {
            Cells::Sqlite(values) => values.add(value),
            Cells::Postgres(columns) => columns.text(value),
        }
    }

    /// A text that other rows have, too.
    pub(in crate::store) fn shared(&mut self, value: Arc<str>) -> Result<(), BoxDynError> {
        match self {
            Cells::Sqlite(values) => values.add(value),
            Cells::Postgres(columns) => columns.text(value.to_string()),
        }
    }
}

/// The columns of many rows.
pub(in crate::store) struct Columns {
    columns: Vec<Column>,
    count: usize,
    /// The column of the next value.
    next: usize,
}

enum Column {
    Integers(Vec<Option<i64>>),
    Flags(Vec<bool>),
    Texts(Vec<String>),
}

impl Columns {
    fn new(count: usize) -> Self {
        Self { columns: Vec::with_capacity(count), count, next: 0 }
    }

    fn integer(&mut self, value: Option<i64>) -> Result<(), BoxDynError> {
        match self.next_column(|| Column::Integers(Vec::new())) {
            Some(Column::Integers(values)) => values.push(value),
            _ => return Err("a column of another type".into()),
        }
        Ok(())
    }

    fn flag(&mut self, value: bool) -> Result<(), BoxDynError> {
        match self.next_column(|| Column::Flags(Vec::new())) {
            Some(Column::Flags(values)) => values.push(value),
            _ => return Err("a column of another type".into()),
        }
        Ok(())
    }

    fn text(&mut self, value: String) -> Result<(), BoxDynError> {
        match self.next_column(|| Column::Texts(Vec::new())) {
            Some(Column::Texts(values)) => values.push(without_nul(value)),
            _ => return Err("a column of another type".into()),
        }
        Ok(())
    }

    /// The first row says what its columns are.
    fn next_column(&mut self, new: impl FnOnce() -> Column) -> Option<&mut Column> {
        let place = self.next;
        self.next = (place + 1) % self.count.max(1);
        if self.columns.len() == place {
            self.columns.push(new());
        }
        self.columns.get_mut(place)
    }

    fn into_arguments(self) -> Result<PgArguments, BoxDynError> {
        let mut arguments = PgArguments::default();
        for column in self.columns {
            match column {
                Column::Integers(values) => arguments.add(values)?,
                Column::Flags(values) => arguments.add(values)?,
                Column::Texts(values) => arguments.add(values)?,
            }
        }
        Ok(arguments)
    }
}
