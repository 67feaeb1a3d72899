//! The parser: chunks in, pieces out.

use std::ops::Range;

use bytes::Bytes;
use memchr::memchr2;

use super::block::Event;

/// The most bytes of an unfinished event that are held back, and so the longest event that is read. A longer one passes as
/// [`Piece::Overflow`]. Real events are under a kilobyte; whole tool arguments and signatures go to some hundred.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Cuts a stream of server-sent events into pieces. Where the chunks are cut does not change the pieces, but for the
/// parts in which an overflow is lent.
#[derive(Debug)]
pub struct SseParser {
    event_bytes_max: usize,
    /// The beginning of the block that is unfinished.
    held: Vec<u8>,
    /// The block that is unfinished is too long; its parts pass as they come.
    overflowing: bool,
    /// Not blank lines that the unfinished block has ended so far.
    lines: usize,
    /// The line that is unfinished has no byte yet.
    line_is_empty: bool,
    /// The last byte was a carriage return; a line feed now would belong to it.
    after_return: bool,
    /// No block has ended yet: a byte order mark may stand before the first.
    first: bool,
}

/// A piece of the stream. All of them together are the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// An event with data, complete with its blank line.
    Event {
        /// What it says.
        event: Event<'a>,
        /// Its bytes.
        place: Place<'a>,
    },
    /// Lines without data up to a blank one: comments, blank lines, other fields.
    Silent(Place<'a>),
    /// A part of an event that is too long to be read.
    Overflow(Place<'a>),
    /// The line feed of a carriage return that has ended the piece before: it belongs there, but did not need waiting for.
    LineFeed(Place<'a>),
}

impl<'a> Piece<'a> {
    /// Its bytes.
    pub fn place(&self) -> Place<'a> {
        match self {
            Self::Event { place, .. } | Self::Silent(place) | Self::Overflow(place) | Self::LineFeed(place) => *place,
        }
    }
}

/// Bytes of the stream, and where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The bytes, as sent.
    pub bytes: &'a [u8],
    /// Where they begin in the chunk that was pushed; `None` if earlier chunks have a part in them.
    pub chunk_at: Option<usize>,
    /// Where they end in the chunk that was pushed; 0 if they are of earlier chunks alone.
    pub chunk_end: usize,
}

impl<'a> Place<'a> {
    fn within(chunk: &'a [u8], span: Range<usize>) -> Self {
        Self { bytes: &chunk[span.clone()], chunk_at: Some(span.start), chunk_end: span.end }
    }

    fn held(bytes: &'a [u8], chunk_end: usize) -> Self {
        Self { bytes, chunk_at: None, chunk_end }
    }
}

impl Default for SseParser {
    fn default() -> Self {
        Self::new(EVENT_BYTES_MAX)
    }
}

impl SseParser {
    /// A parser at the beginning of a stream that holds back at most that many bytes.
    pub fn new(event_bytes_max: usize) -> Self {
        Self {
            event_bytes_max,
            held: Vec::new(),
            overflowing: false,
            lines: 0,
            line_is_empty: true,
            after_return: false,
            first: true,
        }
    }

    /// Takes the next chunk and shows the pieces that it completes. Only an event that is unfinished at its end is copied.
    pub fn push(&mut self, chunk: &Bytes, mut visit: impl FnMut(Piece<'_>)) {
        let mut start = 0;
        while start < chunk.len() {
            if self.after_return && self.line_is_empty && self.is_between() && chunk[start] == b'\n' {
                self.after_return = false;
                visit(Piece::LineFeed(Place::within(chunk, start..start + 1)));
                start += 1;
                continue;
            }
            let Some(end) = self.block_end(chunk, start) else {
                self.hold(chunk, start, &mut visit);
                return;
            };
            self.block(chunk, start..end, &mut visit);
            start = end;
        }
    }

    /// The stream has ended: what is held back is shown as if a blank line had followed. Whether an event that was not
    /// finished is worth anything is for the reader to judge; the standard drops it.
    pub fn finish(&mut self, mut visit: impl FnMut(Piece<'_>)) {
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            visit(self.read(Place::held(&held, 0), None));
        }
        *self = Self::new(self.event_bytes_max);
    }

    /// Whether the stream stands between two blocks, with nothing of the next one there.
    pub fn is_between(&self) -> bool {
        self.held.is_empty() && !self.overflowing
    }

    /// Whether the stream stands at the beginning of a line.
    pub fn is_at_line_start(&self) -> bool {
        self.line_is_empty
    }

    /// Where the unfinished block ends: behind the first byte that ends its blank line.
    fn block_end(&mut self, chunk: &[u8], start: usize) -> Option<usize> {
        let mut at = start;
        while at < chunk.len() {
            let Some(found) = memchr2(b'\n', b'\r', &chunk[at..]) else {
                self.line_is_empty = false;
                self.after_return = false;
                return None;
            };
            let line_feed = chunk[at + found] == b'\n';
            let second_half = found == 0 && line_feed && self.after_return;
            let blank = found == 0 && self.line_is_empty;
            at += found + 1;
            self.line_is_empty = true;
            self.after_return = !line_feed;
            if second_half {
                continue;
            }
            if blank {
                return Some(at);
            }
            self.lines += 1;
        }
        None
    }

    fn hold(&mut self, chunk: &Bytes, start: usize, visit: &mut impl FnMut(Piece<'_>)) {
        let rest = &chunk[start..];
        if !self.overflowing && self.held.len() + rest.len() > self.event_bytes_max {
            self.overflow(visit);
        }
        if self.overflowing {
            visit(Piece::Overflow(Place::within(chunk, start..chunk.len())));
        } else {
            self.held.extend_from_slice(rest);
        }
    }

    fn overflow(&mut self, visit: &mut impl FnMut(Piece<'_>)) {
        self.overflowing = true;
        if !self.held.is_empty() {
            visit(Piece::Overflow(Place::held(&self.held, 0)));
        }
        self.held = Vec::new();
    }

    /// A block ends in this chunk.
    fn block(&mut self, chunk: &Bytes, span: Range<usize>, visit: &mut impl FnMut(Piece<'_>)) {
        let lines = std::mem::take(&mut self.lines);
        if !self.overflowing && self.held.len() + span.len() > self.event_bytes_max {
            self.overflow(visit);
        }
        let here = Place::within(chunk, span.clone());
        if self.overflowing {
            visit(Piece::Overflow(here));
            self.overflowing = false;
        } else if self.held.is_empty() {
            visit(self.read(here, Some(lines)));
        } else {
            self.held.extend_from_slice(here.bytes);
            let held = std::mem::take(&mut self.held);
            visit(self.read(Place::held(&held, span.end), Some(lines)));
        }
        self.first = false;
    }

    fn read<'a>(&self, place: Place<'a>, lines: Option<usize>) -> Piece<'a> {
        let mark = if self.first && place.bytes.starts_with(BOM) { BOM.len() } else { 0 };
        match Event::read(&place.bytes[mark..], lines) {
            Some(event) => {
                let data_at = event.data_at.map(|at| at + mark);
                Piece::Event { event: Event { data_at, ..event }, place }
            }
            None => Piece::Silent(place),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a stream says, and what it is made of. Overflows are joined, for their parts are not promised.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Read {
        events: Vec<(Option<Vec<u8>>, Vec<u8>)>,
        pieces: Vec<(&'static str, Vec<u8>)>,
    }

    impl Read {
        fn take(&mut self, piece: Piece<'_>, chunk: &[u8]) {
            let (kind, place) = match &piece {
                Piece::Event { event, place } => {
                    if let Some(at) = event.data_at {
                        assert_eq!(&place.bytes[at..at + event.data.len()], &*event.data);
                    }
                    self.events.push((event.name.map(<[u8]>::to_vec), event.data.to_vec()));
                    ("event", place)
                }
                Piece::Silent(place) => ("silent", place),
                Piece::Overflow(place) => ("overflow", place),
                Piece::LineFeed(place) => ("line feed", place),
            };
            if let Some(at) = place.chunk_at {
                assert_eq!(&chunk[at..place.chunk_end], place.bytes);
            }
            match self.pieces.last_mut() {
                Some((last, bytes)) if *last == "overflow" && kind == "overflow" => {
                    bytes.extend_from_slice(place.bytes)
                }
                _ => self.pieces.push((kind, place.bytes.to_vec())),
            }
        }
    }

    fn read_by<'a>(event_bytes_max: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> Read {
        let mut parser = SseParser::new(event_bytes_max);
        let mut read = Read::default();
        for chunk in chunks {
            parser.push(&Bytes::copy_from_slice(chunk), |piece| read.take(piece, chunk));
        }
        parser.finish(|piece| read.take(piece, &[]));
        read
    }

    fn events(stream: &[u8]) -> Vec<(Option<Vec<u8>>, Vec<u8>)> {
        read_by(EVENT_BYTES_MAX, [stream]).events
    }

    /// The standard's algorithm, letter by letter, on a whole stream; what is unfinished at its end counts.
    fn events_by_the_standard(stream: &[u8]) -> Vec<(Option<Vec<u8>>, Vec<u8>)> {
        let stream = stream.strip_prefix(BOM).unwrap_or(stream);
        let (mut lines, mut line, mut bytes) = (Vec::new(), Vec::new(), stream.iter().peekable());
        while let Some(&byte) = bytes.next() {
            match byte {
                b'\r' | b'\n' => {
                    if byte == b'\r' {
                        bytes.next_if_eq(&&b'\n');
                    }
                    lines.push(std::mem::take(&mut line));
                }
                other => line.push(other),
            }
        }
        lines.extend([line, Vec::new()]);
        let (mut events, mut name, mut data) = (Vec::new(), Vec::new(), Vec::new());
        for line in lines {
            if line.is_empty() {
                let name = Some(std::mem::take(&mut name)).filter(|name| !name.is_empty());
                if data.pop().is_some() {
                    events.push((name, std::mem::take(&mut data)));
                }
                continue;
            }
            let mut halves = line.splitn(2, |byte| *byte == b':');
            let field = halves.next().unwrap_or_default();
            let value = halves.next().unwrap_or_default();
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match field {
                b"event" => name = value.to_vec(),
                b"data" => data.extend(value.iter().chain(b"\n")),
                _ => {}
            }
        }
        events
    }

    fn event(name: Option<&str>, data: &str) -> (Option<Vec<u8>>, Vec<u8>) {
        (name.map(|name| name.as_bytes().to_vec()), data.as_bytes().to_vec())
    }

    #[test]
    fn all_line_ends_comments_and_several_lines() {
        let stream =
            "\u{FEFF}: hello\r\n\r\ndata: a\r\ndata:b\r\n\r\n\n\revent: e\rdata:  c\r\rdata\n\nid: 7\n\ndata: [DONE]";
        let expected = [event(None, "a\nb"), event(Some("e"), " c"), event(None, ""), event(None, "[DONE]")];
        assert_eq!(events(stream.as_bytes()), expected);
        assert_eq!(read_by(100, stream.as_bytes().chunks(1)).events, expected);
    }

    #[test]
    fn an_event_is_shown_before_the_line_feed_of_its_last_return() {
        let mut parser = SseParser::default();
        let mut seen = 0;
        parser.push(&Bytes::from_static(b"data: x\r\n\r"), |piece| {
            seen += usize::from(matches!(piece, Piece::Event { .. }))
        });
        assert_eq!(seen, 1);
        parser.push(&Bytes::from_static(b"\n"), |piece| assert!(matches!(piece, Piece::LineFeed(_))));
        assert!(parser.is_between());
    }

    #[test]
    fn a_whole_event_is_lent_from_its_chunk() {
        let chunk = Bytes::from_static(b"data: {\"a\":1}\n\ndata: 2\n\n");
        let mut parser = SseParser::default();
        let mut places = Vec::new();
        parser.push(&chunk, |piece| {
            if let Piece::Event { event, place } = piece {
                assert!(matches!(event.data, std::borrow::Cow::Borrowed(_)));
                places.push((place.chunk_at, place.bytes.len()));
            }
        });
        assert_eq!(places, [(Some(0), 15), (Some(15), 9)]);
        assert_eq!(parser.held.capacity(), 0);
    }

    #[test]
    fn too_long_an_event_passes_and_the_next_one_is_read() {
        let stream = format!("data: {}\n\ndata: next\n\n", "x".repeat(50));
        for chunk_bytes in [1, 7, 40, 1000] {
            let read = read_by(57, stream.as_bytes().chunks(chunk_bytes));
            assert_eq!(read.events, [event(None, "next")], "{chunk_bytes}");
            assert_eq!(read.pieces[0], ("overflow", stream.as_bytes()[..58].to_vec()));
            assert_eq!(read_by(58, stream.as_bytes().chunks(chunk_bytes)).events.len(), 2, "{chunk_bytes}");
        }
    }

    /// Streams made of what matters to a parser.
    fn streams() -> impl Strategy<Value = Vec<u8>> {
        let token = prop::sample::select(vec![
            "\n",
            "\n",
            "\r\n",
            "\r",
            "data: ",
            "data:",
            "data",
            "event: e",
            "event:",
            ": c",
            ":",
            " ",
            "x",
            "{\"a\":1}",
            "é",
            "\u{FEFF}",
            "\0",
        ]);
        prop::collection::vec(token, 0..40).prop_map(|tokens| tokens.concat().into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn it_reads_what_the_standard_reads(stream in streams()) {
            prop_assert_eq!(events(&stream), events_by_the_standard(&stream));
        }

        #[test]
        fn any_split_gives_the_same(stream in streams(), chunk_bytes in 1usize..9, event_bytes_max in 1usize..60) {
            let whole = read_by(event_bytes_max, [&stream[..]]);
            prop_assert_eq!(&read_by(event_bytes_max, stream.chunks(chunk_bytes)), &whole);
            prop_assert_eq!(whole.pieces.into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>(), stream);
        }

        #[test]
        fn any_split_of_any_bytes_gives_the_same(stream: Vec<u8>, cuts in prop::collection::vec(0usize..100, 0..4)) {
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts {
                let to = (from + cut).min(stream.len());
                chunks.push(&stream[from..to]);
                from = to;
            }
            chunks.push(&stream[from..]);
            prop_assert_eq!(read_by(EVENT_BYTES_MAX, chunks), read_by(EVENT_BYTES_MAX, [&stream[..]]));
        }
    }
}
