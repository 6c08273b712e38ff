//! Curves over time as SVG, for pages with [`STYLE`].

use std::time::Duration;

/// What pages with these figures are styled by, light and dark.
pub const STYLE: &str = include_str!("report/page.css");

/// Size of a figure, in its own units; pages scale it.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 30.0;

/// Points of a line: more than the figure has pixels draw nothing more.
const MOST_POINTS: usize = 900;
/// Cells of a row of a heat map.
const MOST_CELLS: usize = 160;

/// A figure: what is drawn, over which time.
#[derive(Debug)]
pub struct Figure<'f> {
    /// Of the element; pages have one of each.
    pub id: &'f str,
    /// For people.
    pub title: &'f str,
    /// Of the values.
    pub unit: &'f str,
    /// The time axis begins here.
    pub from: Duration,
    /// And ends here.
    pub to: Duration,
    /// What is shaded.
    pub bands: &'f [Band],
}

/// A shaded stretch of time.
#[derive(Clone, Debug)]
pub struct Band {
    /// For people.
    pub name: String,
    /// `s0` to `s6` of the style.
    pub class: &'static str,
    /// From when.
    pub from: Duration,
    /// Until when.
    pub to: Duration,
}

/// A curve: times and values, unknown ones as gaps.
#[derive(Clone, Debug)]
pub struct Line<'l> {
    /// For people.
    pub name: &'l str,
    /// `line c0` to `line c3`, or `line thin`.
    pub class: String,
    /// In order of time.
    pub points: Vec<(Duration, Option<f64>)>,
}

impl Figure<'_> {
    /// Lines over a scale that begins at `lowest`, or a little below the least value where that is `None`.
    pub fn lines(&self, lines: &[Line<'_>], lowest: Option<f64>, height: f64) -> String {
        let values = || lines.iter().flat_map(|line| &line.points).filter_map(|(_, value)| *value);
        let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max));
        let low = lowest.unwrap_or_else(|| (least - 2.0).floor());
        let step = nice_step((most - low).max(1e-9) / 4.0);
        let low = (low / step).floor() * step;
        let high = low + ((most - low) / step).ceil().max(1.0) * step;
        let y = |value: f64| TOP + height * (1.0 - (value - low) / (high - low));
        let mut svg = self.open(height);
        let mut tick = low;
        while tick <= high + step * 1e-6 {
            svg += &format!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                y(tick),
                y(tick),
                LEFT - 6.0,
                y(tick) + 4.0,
                tidy(tick, step)
            );
            tick += step;
        }
        for line in lines {
            svg += &format!(
                "<path class=\"{}\" d=\"{}\"><title>{}</title></path>",
                line.class,
                self.path(&thinned(&line.points), y),
                escaped(line.name)
            );
        }
        svg + "</svg>"
    }

    /// A row of shades for each line, 0 to `most`.
    pub fn heat(&self, lines: &[Line<'_>], most: f64) -> String {
        let row = (160.0 / lines.len().max(1) as f64).clamp(6.0, 20.0);
        let mut svg = self.open(row * lines.len() as f64);
        for (position, line) in lines.iter().enumerate() {
            let top = TOP + row * position as f64;
            svg += &format!(
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                top + row / 2.0 + 4.0,
                escaped(line.name)
            );
            for pair in thinned_to(&line.points, MOST_CELLS).windows(2) {
                let (x, end) = (self.x(pair[0].0), self.x(pair[1].0));
                let Some(value) = pair[1].1 else { continue };
                svg += &format!(
                    "<rect class=\"heat\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
                     fill-opacity=\"{:.2}\"/>",
                    top + 0.5,
                    (end - x).max(0.5),
                    row - 1.0,
                    (value / most).clamp(0.04, 1.0)
                );
            }
        }
        svg + "</svg>"
    }

    /// Head, stages and time axis.
    fn open(&self, height: f64) -> String {
        let (id, title) = (self.id, escaped(self.title));
        let whole = TOP + height + BOTTOM;
        let seconds = self.to.saturating_sub(self.from).as_secs_f64();
        let names: Vec<&str> = self.bands.iter().map(|band| band.name.as_str()).collect();
        let described =
            if names.is_empty() { "no stages".to_owned() } else { format!("stages: {}", names.join(", ")) };
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {whole:.0}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
             <title id=\"{id}-t\">{title}</title>\
             <desc id=\"{id}-d\">{title}, {} over {seconds:.1} seconds; {}</desc>",
            escaped(self.unit),
            escaped(&described)
        );
        for band in self.bands {
            let (x, end) = (self.x(band.from), self.x(band.to));
            let width = (end - x).max(1.0);
            svg += &format!(
                "<rect class=\"band {}\" x=\"{x:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height:.1}\">\
                 <title>{}</title></rect>",
                band.class,
                escaped(&band.name)
            );
        }
        for (x, name) in self.labels() {
            svg += &format!(
                "<text class=\"stage\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                TOP - 6.0,
                escaped(name)
            );
        }
        let step = nice_step((seconds / 8.0).max(1e-3));
        let mut tick = 0.0;
        while tick <= seconds + step * 1e-6 {
            let x = LEFT + (WIDTH - LEFT - RIGHT) * tick / seconds.max(1e-9);
            svg += &format!(
                "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} s</text>",
                TOP + height,
                TOP + height + 4.0,
                TOP + height + 18.0,
                tidy(tick, step)
            );
            tick += step;
        }
        svg
    }

    /// Names of stages where they have room, the longest stages first: others are told by their colour.
    fn labels(&self) -> Vec<(f64, &str)> {
        let mut order: Vec<&Band> = self.bands.iter().collect();
        order.sort_by_key(|band| std::cmp::Reverse(band.to.saturating_sub(band.from)));
        let mut placed: Vec<(f64, f64, &str)> = Vec::new();
        for band in order {
            let width = 6.6 * band.name.chars().count() as f64 + 8.0;
            let start = self.x(band.from) + 2.0;
            let clear = placed.iter().all(|(from, to, _)| start >= *to || start + width <= *from);
            if clear && start + width <= WIDTH {
                placed.push((start, start + width, &band.name));
            }
        }
        placed.into_iter().map(|(start, _, name)| (start, name)).collect()
    }

    fn x(&self, at: Duration) -> f64 {
        let whole = self.to.saturating_sub(self.from).as_secs_f64().max(1e-9);
        let share = at.saturating_sub(self.from).as_secs_f64() / whole;
        LEFT + (WIDTH - LEFT - RIGHT) * share.min(1.0)
    }

    fn path(&self, points: &[(Duration, Option<f64>)], y: impl Fn(f64) -> f64) -> String {
        let mut path = String::new();
        let mut pen = 'M';
        for (position, (at, value)) in points.iter().enumerate() {
            let Some(value) = value else {
                pen = 'M';
                continue;
            };
            let (x, y) = (self.x(*at), y(*value));
            path += &format!("{pen}{x:.1} {y:.1}");
            // A point between gaps would be no line.
            let alone = pen == 'M' && points.get(position + 1).is_none_or(|(_, next)| next.is_none());
            if alone {
                path += "h2";
            }
            pen = 'L';
        }
        path
    }
}

/// At most so many points that a line can show; of each group the greatest stays, so that no peak is lost.
fn thinned(points: &[(Duration, Option<f64>)]) -> Vec<(Duration, Option<f64>)> {
    thinned_to(points, MOST_POINTS)
}

fn thinned_to(points: &[(Duration, Option<f64>)], most: usize) -> Vec<(Duration, Option<f64>)> {
    let group = points.len().div_ceil(most).max(1);
    let greatest = |chunk: &[(Duration, Option<f64>)]| {
        let value = chunk.iter().filter_map(|(_, value)| *value).reduce(f64::max);
        chunk.last().map(|(at, _)| (*at, value))
    };
    points.chunks(group).filter_map(greatest).collect()
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|n| n * power).find(|step| *step >= least * 0.999).unwrap_or(10.0 * power)
}

/// A tick's value with the digits that its step needs.
fn tidy(value: f64, step: f64) -> String {
    let digits = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    let value = if value.abs() < step / 1e3 { 0.0 } else { value };
    format!("{value:.digits$}")
}

/// Text that no page takes for markup.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_ticks_have_their_digits() {
        let steps = [0.03, 0.1, 0.7, 3.0, 12.0, 99.0].map(nice_step);
        for (step, expected) in steps.into_iter().zip([0.05, 0.1, 1.0, 5.0, 20.0, 100.0]) {
            assert!((step / expected - 1.0).abs() < 1e-9, "{step} {expected}");
        }
        assert_eq!(
            (tidy(0.1 + 0.2, 0.1), tidy(40.0, 20.0), tidy(1e-17, 0.5)),
            ("0.3".into(), "40".into(), "0.0".into())
        );
        assert_eq!(escaped("<script>&\"\u{1b}"), "&lt;script&gt;&amp;&quot;\u{fffd}");
    }

    #[test]
    fn gaps_break_a_line_and_peaks_survive_thinning() {
        let second = Duration::from_secs;
        let figure = Figure { id: "x", title: "x", unit: "%", from: second(0), to: second(4), bands: &[] };
        let points = [Some(1.0), None, Some(2.0), Some(3.0)];
        let points: Vec<_> = points.into_iter().enumerate().map(|(at, v)| (second(at as u64), v)).collect();
        let path = figure.path(&points, |value| value);
        assert_eq!(path.matches('M').count(), 2, "{path}");
        let many: Vec<_> =
            (0..10_000u64).map(|at| (second(at), Some(if at == 5000 { 9.0 } else { 1.0 }))).collect();
        let few = thinned(&many);
        assert!(few.len() <= MOST_POINTS && few.iter().any(|(_, value)| *value == Some(9.0)));
    }
}
