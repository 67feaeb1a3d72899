//! How many tokens a prompt may be, told from its bytes as they are read: what a hold is made of.
//!
//! A bound that is meant to be rarely passed, not the likeliest number: what a request holds too much of it gets back when it
//! ends, what it holds too little of may be missing from the account. It costs one look at each byte, so no vocabulary is asked.
//! The rates are above what the vocabularies of the shipped models need for prose, code, numbers and scripts of all kinds; the
//! test beside them measures it.

use memchr::memchr;

/// Text is weighed in parts of a token.
const PARTS: u64 = 64;

/// What the backslash of a two letter escape weighs. With its letter, a line's end is half a token, and so is a backslash.
const ESCAPE_WEIGHT: u8 = 16;
/// What a character written as `\u` and four digits weighs, and each half of a pair.
const ESCAPED_CHARACTER_WEIGHT: u64 = 96;
/// What a prompt has besides its messages: a template's marks, and what makers add for thinking (some 30 tokens recorded).
const OPENING_TOKENS: u64 = 48;
/// What a message has besides its text.
const MESSAGE_TOKENS: u64 = 8;
/// What tools have besides their text. Anthropic's documentation: up to 530, by the model.
const TOOLS_TOKENS: u64 = 600;
/// What a schema for the answer has besides its text. Recorded of Anthropic: some 200.
const SCHEMA_TOKENS: u64 = 300;

/// The least that a file counts as, and what one counts as whose length is not known because it is named and not sent.
const FILE_TOKENS_MIN: u64 = 3_000;
const NAMED_TOKENS: u64 = 32_768;
/// Base64 of a file that counts as a token: three bytes, which is what a token of text has. A PDF's pages count as text and
/// as images, and its bytes are compressed; a file is no longer than the model can read, though.
const FILE_BASE64_PER_TOKEN: u64 = 4;
/// The same of a sound, of which makers count up to 32 tokens a second: 16 kB/s uncompressed, 4 kB/s compressed.
const WAVE_BASE64_PER_TOKEN: u64 = 640;
const SOUND_BASE64_PER_TOKEN: u64 = 160;
const SOUND_TOKENS_MIN: u64 = 100;

/// What images count as at a provider, at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageTokens {
    /// One whose detail is not said to be low.
    pub full: u64,
    /// One of which the client wants low detail.
    pub low: u64,
}

/// How long what the request wants kept in a cache is kept; the longer, the dearer it is to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheTime {
    /// Five minutes.
    Short,
    /// An hour.
    Long,
}

/// Something in a prompt that is no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// An image; its bytes say nothing of its tokens.
    Image {
        /// Low detail was asked for.
        is_low: bool,
    },
    /// A sound, with the length of its base64.
    Sound {
        /// Of its base64.
        bytes: u64,
        /// It is not compressed.
        is_wave: bool,
    },
    /// A file, or a film, with the length of its base64.
    File {
        /// Of its base64.
        bytes: u64,
    },
    /// Something that is at the provider already, or to be fetched by it.
    Named,
}

/// What a prompt's tokens are bounded from. Filled while a request is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PromptCeiling {
    /// Messages.
    pub messages: u64,
    /// Whether there are tools.
    pub has_tools: bool,
    /// Whether the answer's form is given.
    pub has_schema: bool,
    /// What is to be written to a cache, if anything is.
    pub cache: Option<CacheTime>,
    text_weight: u64,
    images: u64,
    images_low: u64,
    other_tokens: u64,
}

impl PromptCeiling {
    /// Takes JSON text: a string's inside, or any value as it stands.
    pub fn text(&mut self, json: &[u8]) {
        self.text_weight = self.text_weight.saturating_add(weight(json));
    }

    /// Takes what is not text.
    pub fn attachment(&mut self, attachment: Attachment) {
        let tokens = match attachment {
            Attachment::Image { is_low: false } => return self.images += 1,
            Attachment::Image { is_low: true } => return self.images_low += 1,
            Attachment::Sound { bytes, is_wave: true } => (bytes / WAVE_BASE64_PER_TOKEN).max(SOUND_TOKENS_MIN),
            Attachment::Sound { bytes, is_wave: false } => (bytes / SOUND_BASE64_PER_TOKEN).max(SOUND_TOKENS_MIN),
            Attachment::File { bytes } => (bytes / FILE_BASE64_PER_TOKEN).max(FILE_TOKENS_MIN),
            Attachment::Named => NAMED_TOKENS,
        };
        self.other_tokens = self.other_tokens.saturating_add(tokens);
    }

    /// Notes that something is to be kept in a cache.
    pub fn cached(&mut self, time: CacheTime) {
        self.cache = self.cache.max(Some(time));
    }

    /// The most tokens that the prompt is taken for, by a model that reads `context_window` and counts images so.
    pub fn tokens(&self, images: ImageTokens, context_window: u64) -> u64 {
        let attached = (self.images.saturating_mul(images.full))
            .saturating_add(self.images_low.saturating_mul(images.low))
            .saturating_add(self.other_tokens);
        self.text_weight
            .div_ceil(PARTS)
            .saturating_add(OPENING_TOKENS)
            .saturating_add(self.messages.saturating_mul(MESSAGE_TOKENS))
            .saturating_add(if self.has_tools { TOOLS_TOKENS } else { 0 })
            .saturating_add(if self.has_schema { SCHEMA_TOKENS } else { 0 })
            // Text that is too long for the model is refused by the provider, and costs nothing; but the rates of attachments
            // are so far above the usual that they need an end.
            .saturating_add(attached.min(context_window))
    }
}

/// What JSON text weighs.
fn weight(json: &[u8]) -> u64 {
    if !has_escaped_characters(json) {
        return plain_weight(json);
    }
    let mut sum = 0;
    let mut rest = json;
    while let Some(at) = memchr(b'\\', rest) {
        let (plain, escape) = rest.split_at(at);
        sum += plain_weight(plain);
        let (escape, after) = match escape.get(1) {
            Some(b'u') => (ESCAPED_CHARACTER_WEIGHT, 6),
            _ => (plain_weight(&escape[..escape.len().min(2)]), 2),
        };
        sum += escape;
        rest = rest.get(at + after..).unwrap_or_default();
    }
    sum + plain_weight(rest)
}

/// Whether there may be characters that are written as `\u` and digits, which weigh less than their letters. In a form that becomes
/// vector instructions: a look at each pair costs a tenth of weighing them, and most texts have none.
fn has_escaped_characters(json: &[u8]) -> bool {
    json.windows(2).fold(false, |found, pair| found | ((pair[0] == b'\\') & (pair[1] == b'u')))
}

/// What text weighs, two letter escapes by their letters. By a table, four sums at a time, on any machine.
fn plain_weight(text: &[u8]) -> u64 {
    const WEIGHTS: [u8; 256] = {
        let mut weights = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            weights[byte] = byte_weight(byte as u8);
            byte += 1;
        }
        weights
    };
    let of = |byte: u64| u64::from(WEIGHTS[usize::from(byte as u8)]);
    let (words, rest) = text.as_chunks();
    let mut sums = [0; 4];
    for word in words {
        let word = u64::from_le_bytes(*word);
        for (place, sum) in sums.iter_mut().enumerate() {
            *sum += of(word >> (8 * place)) + of(word >> (8 * place + 32));
        }
    }
    sums.into_iter().sum::<u64>() + rest.iter().map(|&byte| of(u64::from(byte))).sum::<u64>()
}

/// What a byte adds: words of small letters have three letters a token or more, capitals begin one, many vocabularies make a token of
/// each digit, and most signs are one. Of characters outside of ASCII the first byte tells how rare they are in vocabularies.
const fn byte_weight(byte: u8) -> u8 {
    let mut weight = 40;
    weight = if byte == b' ' { 8 } else { weight };
    weight = if byte == b'\\' { ESCAPE_WEIGHT } else { weight };
    weight = if byte.wrapping_sub(b'0') < 10 { 64 } else { weight };
    weight = if byte.wrapping_sub(b'A') < 26 { 60 } else { weight };
    weight = if byte.wrapping_sub(b'a') < 26 { 22 } else { weight };
    weight = if byte >= 0x80 { 0 } else { weight };
    // Latin letters with marks, which break words; other alphabets; Cyrillic, which vocabularies know better.
    weight = if byte >= 0xC0 { 96 } else { weight };
    weight = if byte >= 0xCC { 72 } else { weight };
    weight = if byte & 0xFC == 0xD0 { 48 } else { weight };
    weight = if byte >= 0xE0 { 96 } else { weight };
    if byte >= 0xF0 { 192 } else { weight }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::meter::Encoding;

    /// What a text weighs in JSON as most clients write it, or with every character outside of ASCII escaped.
    fn tokens(text: &str, escaped: bool) -> u64 {
        let mut json = serde_json::to_string(text).unwrap();
        if escaped {
            let units = |character: char| {
                let mut units = [0; 2];
                character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect::<String>()
            };
            let spell = |character: char| if character.is_ascii() { character.to_string() } else { units(character) };
            json = json.chars().map(spell).collect();
        }
        weight(&json.as_bytes()[1..json.len() - 1]).div_ceil(PARTS)
    }

    const TEXTS: &[(&str, &str)] = &[
        (
            "English",
            "The relay counts what has passed, and nobody pays for an answer that has never begun. Why should they?",
        ),
        ("capitals", "DO NOT OPEN THIS DOOR WHILE THE MACHINE IS RUNNING. CALL THE OPERATOR FIRST."),
        (
            "German",
            "Die Straßenbahn fährt heute früher ab, weil zwischen Köln und Düsseldorf gebaut wird; größere Umwege drohen.",
        ),
        (
            "French",
            "L'été dernier, nous avons visité un château près de la forêt où l'on élève encore des chevaux à crinière blonde.",
        ),
        ("Polish", "Wczoraj późnym wieczorem zobaczyłem źrebię, które biegało po łące za naszym domem."),
        ("Finnish", "Kävelimme eilen illalla rantaa pitkin ja puhuimme siitä, mitä ensi keväänä tapahtuu."),
        (
            "Indonesian",
            "Kemarin sore kami berjalan di tepi sungai dan membicarakan rencana untuk musim semi mendatang.",
        ),
        ("Swahili", "Jana jioni tulitembea kando ya mto na kuzungumza kuhusu mipango ya mwaka ujao."),
        ("Vietnamese", "Hôm qua tôi đã gặp một người bạn cũ ở chợ nổi, và chúng tôi uống cà phê bên bờ sông."),
        ("Russian", "Вчера вечером мы долго гуляли по набережной и говорили о том, что изменится следующей весной."),
        ("Greek", "Χθες το βράδυ περπατήσαμε δίπλα στη θάλασσα και μιλήσαμε για τα παλιά."),
        ("Arabic", "ذهبنا أمس إلى السوق القديم واشترينا الخبز والزيتون وتحدثنا عن السفر."),
        ("Hebrew", "אתמול בערב הלכנו לאורך החוף ודיברנו על הקיץ הבא."),
        ("Hindi", "कल शाम हम नदी के किनारे घूमने गए और पुराने दिनों की बातें कीं।"),
        ("Thai", "เมื่อวานนี้เราไปเดินเล่นริมแม่น้ำและคุยกันเรื่องวันเก่าๆ"),
        ("Chinese", "昨天晚上我们沿着河边散步,谈到了明年春天的计划,还有那座刚刚修好的老桥。"),
        ("Japanese", "昨日の夜、川沿いを散歩しながら、来年の春の計画について話しました。"),
        ("Korean", "어제저녁에 우리는 강변을 걸으며 내년 봄의 계획에 대해 이야기했습니다."),
        ("emoji", "🎉🚀👩‍💻🇯🇵 ok 👍🏽"),
        (
            "code",
            "fn main() {\n    let total: u64 = items.iter().map(|item| item.cost_nano_usd).sum();\n    println!(\"{total}\");\n}\n",
        ),
        ("identifiers", "getUserAccountById(requestContext.accountIdentifier, MAX_RETRIES_PER_HOUR)"),
        ("JSON", r#"{"name":"get_weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}"#),
        ("numbers", "3.14159 2,718 16:45 2026-11-23 1000000 0.0001 42 -17 +49 30 1234567"),
        ("hexadecimal", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
        ("base64", "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAYAAAAf8/9hAAAAGXRFWHRTb2Z0d2FyZQ"),
        ("table", "| id | name | ok |\n|----|------|----|\n| 1 | a | yes |\n| 2 | b | no |\n"),
        ("tabs", "\t\tif (a) {\r\n\t\t\treturn;\r\n\t\t}\r\n"),
    ];

    /// Two vocabularies, one of them poor outside of English; those of other makers lie between them or near them.
    #[test]
    fn no_kind_of_text_is_more_tokens_than_its_ceiling() {
        let mut bad = Vec::new();
        for (kind, text) in TEXTS {
            let (new, old) = (Encoding::O200k.count(text), Encoding::Cl100k.count(text));
            let plain = tokens(text, false);
            println!("{kind:12} {plain:4} for {new:4} {old:4}, escaped {}", tokens(text, true));
            let escaped = tokens(text, true);
            let is_high = plain >= new && plain * 10 >= old * 8 && escaped >= new;
            if !is_high || plain > new * 5 || escaped > new * 6 {
                bad.push(kind);
            }
        }
        assert_eq!(bad, [&""; 0]);
    }

    #[test]
    fn prose_and_code_are_held_for_with_a_margin_and_not_with_several() {
        for text in
            [include_str!("ceiling.rs"), include_str!("../../../README.md"), include_str!("../../../Cargo.lock")]
        {
            let (ceiling, counted) = (tokens(text, false), Encoding::O200k.count(text));
            println!("{ceiling} for {counted}");
            // Newer vocabularies of Anthropic's make up to a third more of the same text.
            assert!((counted * 6 / 5..counted * 2).contains(&ceiling), "{ceiling} for {counted}");
        }
    }

    #[test]
    fn a_text_weighs_the_same_in_one_piece_and_in_many() {
        let text = TEXTS.iter().map(|(_, text)| *text).collect::<String>();
        let bytes: u64 = text.bytes().map(|byte| u64::from(byte_weight(byte))).sum();
        assert_eq!(plain_weight(text.as_bytes()), bytes);
        assert_eq!(weight(b"ab\\n\\u4f60c\\\\"), 3 * 22 + (16 + 22) + 96 + 2 * 16);
        assert_eq!(weight(b"ab\\nc\\\\"), 3 * 22 + (16 + 22) + 2 * 16, "the same without one that has digits");
        for cut in [&b"\\"[..], b"\\u", b"\\u12", b"a\\"] {
            assert!(weight(cut) > 0);
        }
    }

    #[test]
    fn what_is_no_text_has_its_own_rates() {
        const IMAGES: ImageTokens = ImageTokens { full: 1_500, low: 85 };
        let of = |attachment| {
            let mut ceiling = PromptCeiling::default();
            ceiling.attachment(attachment);
            ceiling.tokens(IMAGES, 100_000) - OPENING_TOKENS
        };
        assert_eq!(of(Attachment::Image { is_low: false }), 1_500);
        assert_eq!(of(Attachment::Image { is_low: true }), 85);
        // A minute of speech: 16 kHz of 16 bits, and 64 kbit/s; 32 tokens a second.
        assert!(of(Attachment::Sound { bytes: 60 * 32_000 * 4 / 3, is_wave: true }) >= 60 * 32);
        assert!(of(Attachment::Sound { bytes: 60 * 8_000 * 4 / 3, is_wave: false }) >= 60 * 32);
        assert_eq!(of(Attachment::File { bytes: 40_000 }), 10_000);
        assert_eq!(of(Attachment::File { bytes: 40 }), FILE_TOKENS_MIN);
        assert_eq!(of(Attachment::File { bytes: 32 << 20 }), 100_000, "no more than the model reads");
        assert_eq!(of(Attachment::Named), NAMED_TOKENS);
    }
}
