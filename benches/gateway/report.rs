//! The table: a figure for every measure, gateway and round, and what is told of them.

use std::collections::BTreeMap;

use crate::contender::BARE;

/// What is measured; the order of the table's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// CPU µs a small request.
    Small,
    /// CPU µs a chunk of a stream.
    Chunk,
    /// The same where the client asks for usage, so that a relay may pass every byte.
    ChunkWithUsage,
    /// CPU µs a request of 100 KiB.
    Large,
    /// CPU µs a request of 1 MiB.
    Huge,
    /// KiB an open stream.
    OpenStream,
    /// µs that a new request takes while they are open; the median one.
    Beside,
    /// The same at the 99th percentile.
    BesideTail,
    /// µs that a chunk comes later than without a gateway; the median chunk.
    Delay,
    /// The same at the 99th percentile.
    DelayTail,
    /// MiB at the peak of the whole round.
    Peak,
}

impl Measure {
    fn label(self) -> &'static str {
        match self {
            Self::Small => "CPU µs a small request",
            Self::Chunk => "CPU µs a chunk",
            Self::ChunkWithUsage => "CPU µs a chunk, usage asked for",
            Self::Large => "CPU µs a request of 100 KiB",
            Self::Huge => "CPU µs a request of 1 MiB",
            Self::OpenStream => "memory of an open stream, KiB",
            Self::Beside => "a new request beside them, median, µs",
            Self::BesideTail => "a new request beside them, 99th percentile, µs",
            Self::Delay => "delay of a chunk, median, µs",
            Self::DelayTail => "delay of a chunk, 99th percentile, µs",
            Self::Peak => "peak RSS, MiB",
        }
    }

    /// Differences of two near figures have no useful ratio.
    fn has_ratio(self) -> bool {
        !matches!(self, Self::Delay | Self::DelayTail)
    }
}

/// Figures as they come in.
#[derive(Debug, Default)]
pub struct Report {
    /// By measure and gateway: round → figure.
    figures: BTreeMap<(Measure, String), BTreeMap<usize, f64>>,
}

impl Report {
    /// Notes one figure.
    pub fn note(&mut self, measure: Measure, gateway: &str, round: usize, figure: f64) {
        self.figures.entry((measure, gateway.to_owned())).or_default().insert(round, figure);
    }

    /// The table in Markdown: minimum and median over the rounds, and the median of the rounds' own ratios to bare
    /// Pingora.
    pub fn table(&self, gateways: &[String]) -> String {
        let mut text = String::from("| min · median (× bare) |");
        gateways.iter().for_each(|gateway| text.push_str(&format!(" {gateway} |")));
        text.push_str(&format!("\n|---|{}", "---:|".repeat(gateways.len())));
        let mut measures: Vec<Measure> = self.figures.keys().map(|(measure, _)| *measure).collect();
        measures.dedup();
        for measure in measures {
            text.push_str(&format!("\n| {} |", measure.label()));
            for gateway in gateways {
                text.push_str(&format!(" {} |", self.cell(measure, gateway).unwrap_or_else(|| "–".to_owned())));
            }
        }
        text
    }

    fn cell(&self, measure: Measure, gateway: &str) -> Option<String> {
        let rounds = self.figures.get(&(measure, gateway.to_owned()))?;
        let mut figures: Vec<f64> = rounds.values().copied().collect();
        let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
        let mut cell = format!("{} · {}", shown(least), shown(median(&mut figures)?));
        let bare = self.figures.get(&(measure, BARE.to_owned()));
        if let Some(bare) = bare.filter(|_| measure.has_ratio() && gateway != BARE) {
            let paired = rounds.iter().filter_map(|(round, figure)| Some(figure / bare.get(round)?));
            let ratio = median(&mut paired.collect::<Vec<_>>())?;
            cell.push_str(&format!(" ({ratio:.2})"));
        }
        Some(cell)
    }
}

/// Three digits are what such figures hold.
fn shown(figure: f64) -> String {
    match figure.abs() {
        size if size < 10.0 => format!("{figure:.2}"),
        size if size < 100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

fn median(figures: &mut [f64]) -> Option<f64> {
    figures.sort_unstable_by(f64::total_cmp);
    let (low, high) = (figures.get(figures.len().checked_sub(1)? / 2)?, figures.get(figures.len() / 2)?);
    Some((low + high) / 2.0)
}
