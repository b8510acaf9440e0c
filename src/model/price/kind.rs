//! Which names are a family's: `gpt-4o-2024-08-06` is `gpt-4o`, and `gpt-4o-audio-preview` is another model.

/// Words that tell a model of another kind or size apart from the family whose name it begins with. Such a model has
/// a price of its own or none: an audio model costs up to 40 times what its text family does.
///
/// From the names of the providers' own lists (<https://platform.openai.com/docs/pricing>,
/// <https://ai.google.dev/gemini-api/docs/pricing>, <https://docs.mistral.ai/getting-started/models>); `free` marks what
/// costs nothing (<https://openrouter.ai/docs/guides/routing/model-variants/free>).
pub const KINDS: [&str; 52] = [
    // What it takes or makes.
    "audio",
    "code",
    "computer",
    "cyber",
    "deep",
    "diarize",
    "edit",
    "embed",
    "embedding",
    "embeddings",
    "guard",
    "image",
    "images",
    "live",
    "moderation",
    "music",
    "native",
    "ocr",
    "omni",
    "realtime",
    "rerank",
    "research",
    "robotics",
    "safeguard",
    "search",
    "sound",
    "speech",
    "stt",
    "transcribe",
    "transcription",
    "translate",
    "tts",
    "video",
    "vision",
    "voice",
    "whisper",
    // How large or how fast it is, and what is free.
    "fast",
    "flash",
    "free",
    "large",
    "lite",
    "max",
    "medium",
    "micro",
    "mini",
    "nano",
    "plus",
    "pro",
    "small",
    "tiny",
    "turbo",
    "ultra",
];

/// Whether a model is of the same kind as `family`, with which its name begins. `rest` is what follows: both in lower case,
/// as `gpt-4o` and `-2024-08-06` or `-audio-preview`.
///
/// Not so where a part of `rest` is one of [`KINDS`], or a size (`8b`, `32k`), or where it goes on with the version that
/// ends the family's name (`claude-opus-4-9` is not `claude-opus-4`; `-0` is the version itself).
pub fn same_kind(family: &str, rest: &str) -> bool {
    let parts = || rest.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    let versioned = family.ends_with(|c: char| c.is_ascii_digit());
    let minor = |part: &str| matches!(part.as_bytes(), [b'1'..=b'9']);
    let other_version = versioned && rest.starts_with('-') && parts().next().is_some_and(minor);
    !other_version && !parts().any(|part| KINDS.contains(&part) || is_size(part))
}

/// `70b` parameters, or a context of `32k`.
fn is_size(part: &str) -> bool {
    let digits = part.strip_suffix(['b', 'k']).unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_or_a_tag_is_the_family_and_another_kind_or_size_or_version_is_not() {
        let dates =
            ["", "-2024-08-06", "-20250929", "-latest", "-preview-05-06", "@20250929", ":0", "-08-2024"];
        for rest in dates.into_iter().chain(["-001", "-0"]) {
            assert!(same_kind("m-1", rest), "{rest}");
        }
        let others =
            ["-audio-preview", "-mini-tts", ":free", "-preview-tts", "-8b", "-32k-0613", "-9", "-9-20270101"];
        for rest in others {
            assert!(!same_kind("m-1", rest), "{rest}");
        }
        assert!(same_kind("m", "-2"), "a name without a version has none that could differ");
    }

    #[test]
    fn the_words_are_in_lower_case() {
        assert!(KINDS.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase())));
    }
}
