//! Bars by day, stacked by model or by what else there is: a drawing, its legend, and the same numbers as a table, as HTML.
//!
//! The drawing is SVG without colours or sizes of its own: classes (`chart-0` and up, `chart-grid`, `chart-text`) are coloured by
//! `assets/style.css` for light and for dark, and it is as wide as its place. It needs no script, and no style that a content security
//! policy would refuse. Plotters draws it, which knows colours only, so each class is drawn in a colour that stands for it.

use std::fmt::Write;

use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::{ChartBuilder, IntoDrawingArea, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, RGBColor, TextStyle};

use crate::relay::meter::NanoUsd;
use crate::store::{DayTotal, UsageTotal, day_name, day_number_of};

/// The drawing's own units. It is shown between 300 and some 600 pixels wide, so that text is 10 pixels high at the least.
const WIDTH: u32 = 1_800;
const HEIGHT: u32 = 1_000;
const TEXT_HEIGHT: i32 = 72;
/// What is left beside the bars: for amounts on the left, for dates below.
const LEFT: u32 = 320;
const BELOW: u32 = 100;
const MARGIN: u32 = 40;
/// A bar's place; of it, what is left free on each side.
const PLACE: i64 = 10;
const GAP: i64 = 1;

/// So many parts of a bar are told apart; what is less goes together.
const SERIES_MAX: usize = 6;
const OTHERS: &str = "others";

/// About so many lines go across the drawing.
const LINES: i64 = 4;

const TEXT: RGBColor = RGBColor(0, 1, 0);
const GRID: RGBColor = RGBColor(0, 2, 0);

/// What the bars count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Nano-USD.
    Usd,
    /// Whole things.
    Count,
}

impl Unit {
    fn show(self, value: i64) -> String {
        const STEPS: [(i64, &str); 3] = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
        match self {
            Unit::Usd => format!("${}", NanoUsd(value)),
            Unit::Count => {
                let step = STEPS.into_iter().find(|(step, _)| value >= *step && value % (step / 10) == 0);
                step.map_or_else(
                    || value.to_string(),
                    |(step, name)| match value % step / (step / 10) {
                        0 => format!("{}{name}", value / step),
                        tenths => format!("{}.{tenths}{name}", value / step),
                    },
                )
            }
        }
    }
}

/// Bars, one a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DayChart {
    id: &'static str,
    title: String,
    unit: Unit,
    /// What the bars are made of, from below; the greatest in all is the first.
    series: Vec<String>,
    /// The days without gap, each with a value for each of the series.
    days: Vec<(String, Vec<i64>)>,
}

impl DayChart {
    /// A chart of the days from one to another, counted from the Unix epoch; what lies beside them is left out. `id` is the figure's,
    /// once a page; `value` is what is shown of each sum.
    pub(super) fn new(
        id: &'static str,
        title: impl Into<String>,
        unit: Unit,
        (first_day, last_day): (i64, i64),
        totals: &[DayTotal],
        value: impl Fn(&UsageTotal) -> i64,
    ) -> Self {
        let place = |total: &DayTotal| {
            let day = day_number_of(&total.day)?;
            usize::try_from(day - first_day).ok().filter(|_| day <= last_day)
        };
        let placed: Vec<(usize, &str, i64)> = totals
            .iter()
            .filter_map(|total| Some((place(total)?, &*total.total.group, value(&total.total))))
            .filter(|(.., value)| *value > 0)
            .collect();
        let series = series_of(&placed);
        let mut days: Vec<_> =
            (first_day..=last_day).map(|day| (day_name(day).unwrap_or_default(), vec![0_i64; series.len()])).collect();
        for (place, group, value) in placed {
            let at = series.iter().position(|name| name == group).unwrap_or(series.len() - 1);
            if let Some(sum) = days.get_mut(place).and_then(|(_, values)| values.get_mut(at)) {
                *sum = sum.saturating_add(value);
            }
        }
        Self { id, title: title.into(), unit, series, days }
    }

    /// The whole figure: drawing, legend, table.
    pub(super) fn html(&self) -> String {
        let (id, title) = (self.id, escaped(&self.title));
        let mut html = format!("<figure class=\"chart\" id=\"{id}\"><figcaption>{title}</figcaption>\n");
        match self.drawing() {
            Some(drawing) if !self.series.is_empty() => {
                html.push_str(&drawing);
                self.push_legend(&mut html);
                self.push_table(&mut html);
            }
            _ => html.push_str("<p class=\"chart-empty\">Nothing in this time.</p>\n"),
        }
        html.push_str("</figure>\n");
        html
    }

    fn sum(values: &[i64]) -> i64 {
        values.iter().fold(0, |sum, value| sum.saturating_add(*value))
    }

    /// The drawing in a sentence, for who does not see it.
    fn description(&self) -> String {
        let sums = || self.days.iter().map(|(day, values)| (day, Self::sum(values)));
        let all = Self::sum(&sums().map(|(_, sum)| sum).collect::<Vec<_>>());
        let most = sums().max_by_key(|(_, sum)| *sum);
        let (Some((first, _)), Some((last, _)), Some((day, most))) = (self.days.first(), self.days.last(), most) else {
            return String::new();
        };
        let [all, most] = [all, most].map(|sum| self.unit.show(sum));
        format!(
            "By day from {first} to {last}: {all} in all, the most on {day} with {most}. The table below has all numbers."
        )
    }

    /// The SVG element; `None` where it cannot be drawn.
    fn drawing(&self) -> Option<String> {
        let mut svg = String::new();
        self.draw(&mut svg).inspect_err(|error| tracing::error!(error, "a chart could not be drawn")).ok()?;
        let mut svg = with_classes(&svg, self.series.len());
        let body = svg.find('>')? + 1;
        let (id, title) = (self.id, escaped(&self.title));
        let opening = format!(
            "<svg class=\"chart-drawing\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{id}-title {id}-desc\">\
             <title id=\"{id}-title\">{title}</title><desc id=\"{id}-desc\">{}</desc>",
            escaped(&self.description())
        );
        svg.replace_range(..body, &opening);
        Some(svg)
    }

    fn draw(&self, into: &mut String) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let most = self.days.iter().map(|(_, values)| Self::sum(values)).max().unwrap_or(0);
        let step = step_for(most);
        let top = step.saturating_mul((most / step).saturating_add(i64::from(most % step > 0)).max(1));
        let width = i64::try_from(self.days.len()).unwrap_or(i64::MAX).saturating_mul(PLACE);
        let root = SVGBackend::with_string(into, (WIDTH, HEIGHT)).into_drawing_area();
        let chart = ChartBuilder::on(&root)
            .margin(MARGIN)
            .x_label_area_size(BELOW - MARGIN)
            .y_label_area_size(LEFT - MARGIN)
            .build_cartesian_2d(0..width, 0..top)
            .map_err(|error| failed(&error))?;
        let area = chart.plotting_area();
        let text = |pos| TextStyle::from(("sans-serif", TEXT_HEIGHT).into_font()).color(&TEXT).pos(pos);
        for value in (0..=top / step).map(|line| line.saturating_mul(step)) {
            let line = PathElement::new([(0, value), (width, value)], GRID.stroke_width(4));
            area.draw(&line).map_err(|error| failed(&error))?;
            let (x, y) = area.map_coordinate(&(0, value));
            let label = Text::new(self.unit.show(value), (x - 20, y), text(Pos::new(HPos::Right, VPos::Center)));
            root.draw(&label).map_err(|error| failed(&error))?;
        }
        for (at, (_, values)) in (0..).zip(&self.days) {
            let mut below: i64 = 0;
            for (series, value) in values.iter().enumerate().filter(|(_, value)| **value > 0) {
                let above = below.saturating_add(*value);
                let corners = [(at * PLACE + GAP, above), ((at + 1) * PLACE - GAP, below)];
                area.draw(&Rectangle::new(corners, color_of(series).filled())).map_err(|error| failed(&error))?;
                below = above;
            }
        }
        for (at, h_pos) in self.dated() {
            let x = match h_pos {
                HPos::Left => 0,
                HPos::Center => i64::try_from(at).unwrap_or(0) * PLACE + PLACE / 2,
                HPos::Right => width,
            };
            let (x, y) = area.map_coordinate(&(x, 0));
            let day = self.days.get(at).map(|(day, _)| day.clone()).unwrap_or_default();
            root.draw(&Text::new(day, (x, y + 20), text(Pos::new(h_pos, VPos::Top))))
                .map_err(|error| failed(&error))?;
        }
        root.present().map_err(|error| failed(&error))
    }

    /// Which days have their date below them.
    fn dated(&self) -> Vec<(usize, HPos)> {
        match self.days.len() {
            0 => Vec::new(),
            1 | 2 => vec![(0, HPos::Left)],
            days if days < 7 => vec![(0, HPos::Left), (days - 1, HPos::Right)],
            days => vec![(0, HPos::Left), (days / 2, HPos::Center), (days - 1, HPos::Right)],
        }
    }

    fn push_legend(&self, html: &mut String) {
        html.push_str("<ul class=\"chart-legend\">");
        for (at, name) in self.series.iter().enumerate() {
            let name = escaped(name);
            let _ = write!(html, "<li><span class=\"chart-key chart-{at}\"></span>{name}</li>");
        }
        html.push_str("</ul>\n");
    }

    /// The days that have anything, the latest first.
    fn push_table(&self, html: &mut String) {
        html.push_str(
            "<details class=\"chart-table\"><summary>As a table</summary><div class=\"scroll\" tabindex=\"0\">",
        );
        html.push_str("<table><thead><tr><th scope=\"col\">Day (UTC)</th>");
        for name in &self.series {
            let _ = write!(html, "<th scope=\"col\">{}</th>", escaped(name));
        }
        html.push_str("</tr></thead><tbody>\n");
        for (day, values) in self.days.iter().rev().filter(|(_, values)| values.iter().any(|value| *value != 0)) {
            let _ = write!(html, "<tr><th scope=\"row\">{day}</th>");
            for value in values {
                let _ = write!(html, "<td>{}</td>", self.unit.show(*value));
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table></div></details>\n");
    }
}

/// The names of the greatest, and one for the rest where there is one.
fn series_of(placed: &[(usize, &str, i64)]) -> Vec<String> {
    let mut sums: std::collections::BTreeMap<&str, i64> = std::collections::BTreeMap::new();
    for (_, group, value) in placed {
        let sum = sums.entry(group).or_default();
        *sum = sum.saturating_add(*value);
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(name, sum)| (std::cmp::Reverse(*sum), *name));
    let is_cut = sums.len() > SERIES_MAX;
    sums.truncate(SERIES_MAX - usize::from(is_cut));
    let names = sums.into_iter().map(|(name, _)| name.to_owned());
    names.chain(is_cut.then(|| OTHERS.to_owned())).collect()
}

/// The distance of lines below that value: 1, 2 or 5 and zeros.
fn step_for(most: i64) -> i64 {
    let mut power: i64 = 1;
    loop {
        for step in [1, 2, 5].map(|digit| power.saturating_mul(digit)) {
            if step.saturating_mul(LINES) >= most {
                return step;
            }
        }
        power = power.saturating_mul(10);
    }
}

/// What stands for the class of a series.
fn color_of(series: usize) -> RGBColor {
    RGBColor(1, 0, u8::try_from(series).unwrap_or(u8::MAX))
}

/// Puts classes in the place of the colours that stand for them, leaves out what goes without saying, and makes one path of all the bars
/// of a series, which takes a third of the bytes.
fn with_classes(svg: &str, series: usize) -> String {
    let hex = |RGBColor(red, green, blue): RGBColor| format!("#{red:02X}{green:02X}{blue:02X}");
    let mut rest = String::with_capacity(svg.len());
    let mut bars = vec![String::new(); series];
    let fills: Vec<String> = (0..series).map(|at| hex(color_of(at))).collect();
    for line in svg.lines() {
        match bar(line, &fills).and_then(|(at, path)| bars.get_mut(at).map(|bars| bars.push_str(&path))) {
            Some(()) => {}
            None => rest.extend([line, "\n"]),
        }
    }
    let mut svg =
        rest.replace(" opacity=\"1\"", "").replace(" stroke=\"none\"", "").replace(" font-family=\"sans-serif\"", "");
    let paths: String =
        (0..).zip(&bars).map(|(at, bars): (usize, _)| format!("<path class=\"chart-{at}\" d=\"{bars}\"/>\n")).collect();
    if let Some(end) = svg.rfind("</svg>") {
        svg.insert_str(end, &paths);
    }
    svg = svg.replace(&format!("fill=\"{}\"", hex(TEXT)), "class=\"chart-text\"");
    svg.replace(&format!("stroke=\"{}\"", hex(GRID)), "class=\"chart-grid\"")
}

/// A line that draws a bar: of which series, and as a part of a path.
fn bar(line: &str, fills: &[String]) -> Option<(usize, String)> {
    let attribute = |name: &str| line.split_once(&format!(" {name}=\""))?.1.split('"').next();
    let series = fills
        .iter()
        .position(|fill| attribute("fill") == Some(fill.as_str()))
        .filter(|_| line.starts_with("<rect "))?;
    let [x, y, width, height] =
        [attribute("x")?, attribute("y")?, attribute("width")?, attribute("height")?].map(str::to_owned);
    Some((series, format!("M{x} {y}h{width}v{height}h-{width}z")))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(day: &str, group: &str, cost: i64) -> DayTotal {
        let total = UsageTotal { group: group.to_owned(), cost: NanoUsd(cost), ..UsageTotal::default() };
        DayTotal { day: day.to_owned(), total }
    }

    fn chart(totals: &[DayTotal], days: (i64, i64)) -> DayChart {
        DayChart::new("spend", "Spend <by> day", Unit::Usd, days, totals, |total| total.cost.0)
    }

    #[test]
    fn each_day_has_its_bar_and_each_bar_its_parts() {
        let totals = [
            total("1970-01-02", "small", 1_000_000_000),
            total("1970-01-02", "great", 3_000_000_000),
            total("1970-01-04", "great", 2_000_000_000),
            total("1970-01-09", "great", 7),
        ];
        let chart = chart(&totals, (1, 4));
        assert_eq!(chart.series, ["great", "small"], "the greatest is below");
        let days: Vec<_> = chart.days.iter().map(|(day, values)| (&**day, &values[..])).collect();
        let (one, third) = ([3_000_000_000, 1_000_000_000], [2_000_000_000, 0]);
        assert_eq!(
            days,
            [("1970-01-02", &one[..]), ("1970-01-03", &[0, 0]), ("1970-01-04", &third), ("1970-01-05", &[0, 0])]
        );
        let html = chart.html();
        let bars = |series: &str| {
            let path = html.split_once(&format!("<path class=\"{series}\" d=\"")).unwrap().1;
            path.split('"').next().unwrap().matches('M').count()
        };
        assert_eq!((bars("chart-0"), bars("chart-1"), html.matches("<rect").count()), (2, 1, 0), "{html}");
        assert!(html.contains("$4.00") && html.contains("from 1970-01-02 to 1970-01-05: $6.00 in all"), "{html}");
        assert!(html.contains("<th scope=\"row\">1970-01-04</th><td>$2.00</td><td>$0.00</td>"), "{html}");
        assert!(!html.contains("1970-01-03</th>"), "a day without anything has no row: {html}");
    }

    #[test]
    fn nothing_in_it_needs_a_style_or_a_script_or_is_taken_for_a_tag() {
        let html = chart(&[total("1970-01-02", "<script>\"&", 5)], (0, 30)).html();
        assert!(!html.contains("style") && !html.contains("<script") && !html.contains('#'), "{html}");
        assert!(html.contains("&lt;script&gt;&quot;&amp;</li>") && html.contains("Spend &lt;by&gt; day"), "{html}");
        assert!(html.contains("aria-labelledby=\"spend-title spend-desc\""));
        assert_eq!(html.matches("xmlns").count(), 0);
    }

    #[test]
    fn what_is_little_goes_together() {
        let totals: Vec<_> = (0..9).map(|at| total("1970-01-02", &format!("m{at}"), 100 - at)).collect();
        let chart = chart(&totals, (1, 1));
        assert_eq!(chart.series, ["m0", "m1", "m2", "m3", "m4", "others"]);
        assert_eq!(chart.days[0].1[5], 95 + 94 + 93 + 92);
        let six: Vec<_> = totals.into_iter().take(6).collect();
        assert_eq!(super::DayChart::new("a", "b", Unit::Count, (1, 1), &six, |total| total.cost.0).series.len(), 6);
    }

    #[test]
    fn a_time_without_anything_is_said_to_be_that() {
        for days in [(1, 30), (5, 4)] {
            let html = chart(&[], days).html();
            assert!(html.contains("Nothing in this time.") && !html.contains("<svg"), "{html}");
        }
    }

    #[test]
    fn a_quarter_of_a_year_stays_small_and_any_amount_can_be_drawn() {
        let totals: Vec<_> = (0..90)
            .flat_map(|day| {
                (0..9).map(move |model| total(&day_name(day).unwrap(), &format!("maker/m{model}"), i64::MAX / 4))
            })
            .collect();
        let html = chart(&totals, (0, 89)).html();
        assert!(html.contains("<svg") && html.len() < 45_000, "{}", html.len());
        assert!(chart(&totals[..1], (0, 0)).html().contains("d=\"M"));
    }

    #[test]
    fn lines_stand_at_round_values() {
        for (most, step) in [(0, 1), (1, 1), (4, 1), (5, 2), (9, 5), (21, 10), (4_000_000_000, 1_000_000_000)] {
            assert_eq!(step_for(most), step, "{most}");
        }
        for (value, shown) in
            [(0, "0"), (999, "999"), (1_500, "1.5k"), (20_000, "20k"), (1_234, "1234"), (2_500_000, "2.5M")]
        {
            assert_eq!(Unit::Count.show(value), shown);
        }
        assert_eq!(Unit::Usd.show(50_000_000), "$0.05");
    }
}
