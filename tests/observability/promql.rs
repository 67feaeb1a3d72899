//! As much of PromQL as it takes to know which series and labels an expression names.
//!
//! Every word that is no function, operator or label in its place is taken for a series: one that is misspelt is not overlooked.

/// What is no series.
const WORDS: [&str; 24] = [
    "sum",
    "min",
    "max",
    "count",
    "avg",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "rate",
    "irate",
    "increase",
    "changes",
    "absent",
    "histogram_quantile",
    "vector",
    "clamp_min",
    "time",
    "and",
    "or",
    "unless",
    "bool",
];

/// After these stands a list of labels.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// An expression, as far as it names things.
#[derive(Debug, Default)]
pub(crate) struct Expression {
    pub(crate) selectors: Vec<Selector>,
    /// Labels that are grouped or matched by.
    pub(crate) grouping: Vec<String>,
}

/// A series and the labels that it is asked for by.
#[derive(Debug)]
pub(crate) struct Selector {
    pub(crate) series: String,
    pub(crate) labels: Vec<String>,
}

impl Expression {
    pub(crate) fn read(text: &str) -> Self {
        let mut expression = Self::default();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let length = rest.find(|c: char| !is_of_a_word(c)).unwrap_or(rest.len());
            let (word, behind) = rest.split_at(length);
            rest = match first {
                '"' => &rest[1 + rest[1..].find('"').expect("a text that ends") + 1..],
                '[' => &rest[rest.find(']').expect("a range that ends")..],
                _ if length == 0 || first.is_ascii_digit() => &rest[length.max(first.len_utf8())..],
                _ if BEFORE_LABELS.contains(&word) => expression.take_grouping(behind),
                _ if WORDS.contains(&word) => behind,
                _ => expression.take_selector(word, behind),
            };
        }
        expression
    }

    fn take_grouping<'t>(&mut self, behind: &'t str) -> &'t str {
        let inside = behind.trim_start().strip_prefix('(').expect("a list of labels");
        let (list, behind) = inside.split_once(')').expect("a list that ends");
        self.grouping.extend(list.split(',').map(|label| label.trim().to_owned()));
        behind
    }

    fn take_selector<'t>(&mut self, series: &str, behind: &'t str) -> &'t str {
        let mut selector = Selector { series: series.to_owned(), labels: Vec::new() };
        let mut rest = behind;
        if let Some(mut inside) = behind.strip_prefix('{') {
            while !inside.starts_with('}') {
                let (label, value) = inside.split_once(['=', '!']).expect("a label and its value");
                selector.labels.push(label.trim().to_owned());
                let (_, text) = value.split_once('"').expect("a value in quotes");
                let (_, next) = text.split_once('"').expect("a value that ends");
                inside = next.trim_start_matches([',', ' ']);
            }
            rest = &inside[1..];
        }
        self.selectors.push(selector);
        rest
    }
}

/// Grafana's `label_values(series, label)`.
pub(crate) fn label_values(query: &str) -> Expression {
    let inside = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')')).expect("label_values");
    let (series, label) = inside.rsplit_once(", ").expect("a series and a label");
    let mut expression = Expression::read(series);
    expression.grouping.push(label.to_owned());
    expression
}

fn is_of_a_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.')
}
