//! Counting text where no count is reported: by threads of their own, off the reactor.
//!
//! 1. The queue has a bound, in jobs and in bytes. When it is full the job comes back, and the caller estimates.
//! 2. Text is dropped as soon as it is counted, and before anybody is told.
//! 3. The token table (some megabytes) is loaded once, by the first worker, when it starts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::text::{Prompt, Text};
use super::tokenizer::{Encoding, With};

/// What is to be counted.
#[derive(Debug, PartialEq, Eq)]
pub struct CountJob {
    /// How.
    pub encoding: Encoding,
    /// What was asked.
    pub request: Text,
    /// What was answered.
    pub answer: Text,
}

impl CountJob {
    /// What counts it in place of the model's own tokenizer, by the first few thousand bytes of the longer text: for a row
    /// that is written before the count is there.
    pub fn stand_in(&self) -> Option<With> {
        const SAMPLE: usize = 4096;
        let (request, answer) = (&self.request.kept, &self.answer.kept);
        let longer = if request.len() > answer.len() { request } else { answer };
        let end = (0..=SAMPLE.min(longer.len())).rev().find(|at| longer.is_char_boundary(*at));
        self.encoding.with(&longer[..end.unwrap_or(0)])
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Tokens of the request.
    pub input: u64,
    /// Tokens of the answer.
    pub output: u64,
    /// Whether not all text had been kept, and the rest was taken to be like what had; or there was more than text (an
    /// image of unknown size) whose tokens are a guess.
    pub extrapolated: bool,
    /// What counted in place of the model's own tokenizer, where that is not on board or not known.
    pub with: Option<With>,
}

type Then = Box<dyn FnOnce(Counted) + Send>;

/// The counting threads. Clones share them; the last one to go lets them finish what is queued, and joins them.
#[derive(Clone, Debug)]
pub struct Counter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Option<SyncSender<(CountJob, Then)>>,
    /// Bytes of the texts that are queued or being counted.
    bytes: Arc<AtomicUsize>,
    max_bytes: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Counter {
    /// Starts `threads` threads (at least one) before a queue of `queue` jobs with `max_bytes` of text, and returns at
    /// once: the token table is loaded by the first of them.
    ///
    /// # Panics
    /// Never. Threads that the system refuses to start are missing; when all are, every job comes back.
    pub fn start(threads: usize, queue: usize, max_bytes: usize) -> Self {
        let (sender, receiver) = sync_channel(queue.max(1));
        let receiver = Arc::new(Mutex::new(receiver));
        let threads: Vec<_> = (0..threads.max(1))
            .map_while(|index| {
                let receiver = receiver.clone();
                let work = move || work(&receiver);
                std::thread::Builder::new().name(format!("count-{index}")).spawn(work).ok()
            })
            .collect();
        let queue = (!threads.is_empty()).then_some(sender);
        Self { shared: Arc::new(Shared { queue, bytes: Arc::default(), max_bytes, threads }) }
    }

    /// Queues a job. The receiver yields its count; it fails only if the counter is gone.
    ///
    /// # Errors
    /// The queue is full: the job, back again.
    pub fn submit(&self, job: CountJob) -> Result<oneshot::Receiver<Counted>, CountJob> {
        let (sender, receiver) = oneshot::channel();
        // Whoever asked may have stopped waiting.
        let then = move |counted| {
            let _ = sender.send(counted);
        };
        match self.submit_then(job, then) {
            Ok(()) => Ok(receiver),
            Err(job) => Err(job),
        }
    }

    /// Queues a job and says what to do with its count, on the counting thread: something short.
    ///
    /// # Errors
    /// The queue is full: the job, back again; `then` is dropped.
    pub fn submit_then(
        &self,
        job: CountJob,
        then: impl FnOnce(Counted) + Send + 'static,
    ) -> Result<(), CountJob> {
        let Some(queue) = &self.shared.queue else { return Err(job) };
        let Some(queued) = Queued::new(&self.shared, &job) else { return Err(job) };
        let then = move |counted| {
            drop(queued);
            then(counted);
        };
        queue.try_send((job, Box::new(then) as Then)).map_err(|error| match error {
            TrySendError::Full((job, _)) | TrySendError::Disconnected((job, _)) => job,
        })
    }
}

/// The bytes of a job, for as long as its text is there.
#[derive(Debug)]
struct Queued {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Queued {
    /// `None` where they are too many beside those that are queued. A job alone is never too large: its texts are bounded.
    fn new(shared: &Shared, job: &CountJob) -> Option<Self> {
        let (bytes, all) = (job.request.bytes() + job.answer.bytes(), shared.bytes.clone());
        let added = |before: usize| {
            let after = before.saturating_add(bytes);
            (before == 0 || after <= shared.max_bytes).then_some(after)
        };
        all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added).ok()?;
        Some(Self { bytes, all })
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue = None;
        let own = std::thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != own) {
            drop(thread.join());
        }
    }
}

fn work(queue: &Mutex<Receiver<(CountJob, Then)>>) {
    // Warm before the first job, which somebody waits for.
    bpe_openai::o200k_base().count("warm");
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((job, then)) = next else { return };
        // A job that makes the tokenizer panic costs its count, not the thread.
        let counted = catch_unwind(AssertUnwindSafe(|| count(&job))).unwrap_or_else(|_| Counted {
            input: estimate(&job.request),
            output: estimate(&job.answer),
            extrapolated: true,
            with: job.encoding.with(""),
        });
        drop(job);
        drop(catch_unwind(AssertUnwindSafe(|| then(counted))));
    }
}

/// Counts here and now: about 30 ns for each byte. For threads that may take that long.
pub fn count(job: &CountJob) -> Counted {
    let (request, answer) = (&job.request, &job.answer);
    let (input, output) = match job.encoding {
        Encoding::Chars4 => {
            let chars = |text: &Text| scaled(text.kept.chars().count() as u64, text);
            let (asked, said) = (chars(request), chars(answer));
            let total = asked.saturating_add(said).div_ceil(4);
            let input = asked.div_ceil(4);
            (input, total - input)
        }
        encoding => (tokens(encoding, request), tokens(encoding, answer)),
    };
    let guessed = |text: &Text| {
        let kept = |text: &Text| text.seen_bytes <= text.kept.len() as u64;
        !kept(text) || text.prompt.as_ref().is_some_and(|prompt| prompt.estimated || !kept(&prompt.aside))
    };
    let longer = if answer.kept.len() > request.kept.len() { answer } else { request };
    Counted {
        input,
        output,
        extrapolated: guessed(request) || guessed(answer),
        with: job.encoding.with(&longer.kept),
    }
}

/// Tokens of a text, and of what a prompt holds beside it.
fn tokens(encoding: Encoding, text: &Text) -> u64 {
    let said = scaled(encoding.count(&text.kept, text.parts()), text);
    let beside = text.prompt.as_deref().map_or(0, |prompt| {
        let tools = prompt.tools_text();
        let aside: Vec<_> = prompt.aside.parts().map(Prompt::aside_text).collect();
        let aside = encoding.count(&prompt.aside.kept, aside.iter().map(|part| &**part));
        encoding
            .count(&tools, [&*tools].into_iter())
            .saturating_add(scaled(aside, &prompt.aside))
            .saturating_add(prompt.framing())
    });
    said.saturating_add(beside)
}

/// What was counted in the kept part, for the whole.
fn scaled(count: u64, text: &Text) -> u64 {
    let kept = text.kept.len() as u64;
    if text.seen_bytes <= kept {
        count
    } else if kept == 0 {
        text.seen_bytes.div_ceil(4)
    } else {
        let whole = u128::from(count) * u128::from(text.seen_bytes);
        u64::try_from(whole.div_ceil(u128::from(kept))).unwrap_or(u64::MAX)
    }
}

/// A guess in constant time, for when there is no time to count: four bytes of ASCII a token, and a token for each
/// other character, judged by the first few thousand bytes.
pub fn estimate(text: &Text) -> u64 {
    let said = estimate_bytes(text.kept.as_bytes(), text.seen_bytes);
    let beside = text.prompt.as_deref().map_or(0, |prompt| {
        // The names and signs of JSON schemas are half of them.
        let tools = prompt.tools.len() as u64 / 8;
        estimate(&prompt.aside).saturating_add(tools).saturating_add(prompt.framing())
    });
    said.saturating_add(beside)
}

/// Splits a total that a provider reports alone into input and output; they sum to `total` exactly.
///
/// The output is the answer's text as estimated; the rest is input, for what neither text shows (instructions, passages
/// that were retrieved, earlier turns) goes into the prompt. Where the two texts are estimated at more than the total it
/// is split in their ratio. Without an answer's text all of it is input.
pub fn split_total(total: u64, request: &Text, answer: &Text) -> (u64, u64) {
    let (asked, said) = (estimate(request), estimate(answer));
    let both = asked.saturating_add(said);
    let output = if both <= total {
        said
    } else {
        let share = u128::from(total) * u128::from(said) / u128::from(both);
        u64::try_from(share).unwrap_or(total).min(total)
    };
    (total - output, output)
}

/// The same of text whose beginning is `kept` and which has `seen_bytes` in all.
pub(super) fn estimate_bytes(kept: &[u8], seen_bytes: u64) -> u64 {
    const SAMPLE: usize = 4096;
    let sample = &kept[..kept.len().min(SAMPLE)];
    if sample.is_empty() {
        return seen_bytes.div_ceil(4);
    }
    let ascii = sample.iter().filter(|byte| byte.is_ascii()).count() as u64;
    let others = sample.iter().filter(|byte| **byte >= 0xc0).count() as u64;
    let quarters = u128::from(ascii + 4 * others) * u128::from(seen_bytes);
    u64::try_from(quarters.div_ceil(4 * sample.len() as u128)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(encoding: Encoding, request: &str, answer: &str) -> CountJob {
        CountJob { encoding, request: Text::whole(request), answer: Text::whole(answer) }
    }

    #[test]
    fn the_reference_tokenizers_counts_are_ours() {
        let cases = include_str!("../../tests/cases/counts.json");
        let cases: Vec<serde_json::Value> = serde_json::from_str(cases).unwrap();
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            for (encoding, name) in [(Encoding::O200k, "o200k"), (Encoding::Cl100k, "cl100k")] {
                let counted = count(&job(encoding, "", text));
                assert_eq!(counted.output, case[name].as_u64().unwrap(), "{name}: {text}");
            }
        }
    }

    #[test]
    fn the_services_own_rule_rounds_the_sum_once() {
        let counted = count(&job(Encoding::Chars4, "grüße", "ab"));
        assert_eq!(counted.input + counted.output, 7u64.div_ceil(4));
    }

    #[test]
    fn text_that_was_not_kept_is_taken_to_be_like_what_was() {
        let kept = "The quick brown fox. ".repeat(100);
        let whole = count(&job(Encoding::O200k, "", &kept)).output;
        let answer = Text { seen_bytes: 10 * kept.len() as u64, ..Text::whole(kept) };
        let counted = count(&CountJob { encoding: Encoding::O200k, request: Text::default(), answer });
        assert_eq!(counted, Counted { input: 0, output: 10 * whole, extrapolated: true, with: None });
    }

    #[test]
    fn an_estimate_is_not_far_off() {
        for text in [
            "The quick brown fox jumps over the lazy dog. ".repeat(20),
            "你好，世界。今天天气很好。".repeat(20),
        ] {
            let counted = count(&job(Encoding::O200k, "", &text)).output;
            let estimate = estimate(&Text::whole(text));
            assert!((counted / 2..=counted * 2).contains(&estimate), "{counted} {estimate}");
        }
        assert_eq!(estimate(&Text::default()), 0);
    }

    #[test]
    fn no_token_spans_two_parts() {
        let mut buffer = crate::meter::text::Buffer::new(100);
        for part in ["hello", " wor", "ld", "", "!"] {
            buffer.cut(b"\n");
            buffer.push(part.as_bytes());
        }
        let text = buffer.into_text();
        assert_eq!(text.kept, "hello\n wor\nld\n\n!");
        assert_eq!(text.parts().collect::<Vec<_>>(), ["hello", " wor", "ld", "!"]);
        let count_of = |text: Text| {
            count(&CountJob { encoding: Encoding::O200k, request: text, answer: Text::default() }).input
        };
        let apart: u64 =
            ["hello", " wor", "ld", "!"].into_iter().map(|part| count_of(Text::whole(part))).sum();
        assert_eq!(count_of(text), apart);
    }

    #[test]
    fn what_is_counted_by_another_tokenizer_says_so() {
        let family = Encoding::for_model(Some("claude-sonnet-4"));
        let counted = count(&job(family, "Hello", "How are you today?"));
        assert_eq!(counted.with.unwrap().to_string(), "cl100k × 1.10 (claude, latin)");
        assert_eq!(count(&job(Encoding::StandIn, "Hello", "")).with.unwrap().to_string(), "o200k");
        assert_eq!(count(&job(Encoding::O200k, "Hello", "")).with, None);
        for text in ["Hello there.", &"€uro ".repeat(2000)] {
            let job = job(Encoding::for_model(Some("claude-sonnet-4-5")), "Hi", text);
            assert_eq!(job.stand_in(), count(&job).with, "it is named before it is counted");
        }
    }

    #[test]
    fn a_total_is_split_by_the_visible_text() {
        let words = |count: usize| Text::whole("word ".repeat(count));
        let said = estimate(&words(100));
        assert_eq!(split_total(1_000, &words(20), &words(100)), (1_000 - said, said));
        assert_eq!(split_total(1_000, &Text::default(), &words(100)), (1_000 - said, said));
        assert_eq!(split_total(1_000, &words(20), &Text::default()), (1_000, 0));
        assert_eq!(split_total(1_000, &Text::default(), &Text::default()), (1_000, 0));
        // Seen at more than the total: in the ratio of the two.
        assert_eq!(split_total(100, &words(1_000), &words(1_000)), (50, 50));
        assert_eq!(split_total(0, &words(10), &words(10)), (0, 0));
    }

    proptest::proptest! {
        #[test]
        fn a_split_sums_to_its_total_exactly(total: u64, asked in ".{0,200}", said in ".{0,200}", unseen: u64) {
            let answer = Text { seen_bytes: unseen.max(said.len() as u64), ..Text::whole(said) };
            let (input, output) = split_total(total, &Text::whole(asked), &answer);
            proptest::prop_assert_eq!(input.checked_add(output), Some(total));
        }

        #[test]
        fn parts_are_counted_as_if_each_stood_alone(parts in proptest::collection::vec(".{0,20}", 0..8), limit in 0usize..120) {
            let mut buffer = crate::meter::text::Buffer::new(limit);
            for part in &parts {
                buffer.cut(b"\n");
                buffer.push(part.as_bytes());
            }
            let text = buffer.into_text();
            let kept: String = text.parts().collect();
            let whole: String = parts.concat();
            proptest::prop_assert!(whole.starts_with(&kept) || text.seen_bytes > text.kept.len() as u64);
            if text.seen_bytes == text.kept.len() as u64 {
                proptest::prop_assert_eq!(kept, whole);
            }
        }
    }

    #[test]
    fn a_job_is_counted_by_a_thread() {
        let counter = Counter::start(2, 8, 1000);
        let receiver = counter.submit(job(Encoding::O200k, "hello world", "hello")).unwrap();
        assert_eq!(
            receiver.blocking_recv().unwrap(),
            Counted { input: 2, output: 1, extrapolated: false, with: None }
        );
    }

    #[test]
    fn a_full_queue_gives_the_job_back() {
        let counter = Counter::start(1, 1, 1000);
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (started, start) = std::sync::mpsc::channel();
        let wait = move |_| {
            started.send(()).unwrap();
            held.recv().ok();
        };
        counter.submit_then(job(Encoding::Chars4, "", ""), wait).unwrap();
        start.recv().unwrap();
        let queued = counter.submit(job(Encoding::Chars4, "1234", "")).unwrap();
        let refused = counter.submit(job(Encoding::Chars4, "5678", "")).unwrap_err();
        assert_eq!(refused.request.kept, "5678");
        drop(hold);
        assert_eq!(queued.blocking_recv().unwrap().input, 1);
    }

    #[test]
    fn the_queue_is_bounded_in_bytes_and_one_job_always_fits() {
        let counter = Counter::start(1, 64, 10);
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let wait = move |_| {
            held.recv().ok();
        };
        counter.submit_then(job(Encoding::Chars4, "", ""), wait).unwrap();
        let large = counter.submit(job(Encoding::Chars4, "twelve bytes", "")).unwrap();
        assert!(counter.submit(job(Encoding::Chars4, "1", "")).is_err());
        drop(hold);
        assert_eq!(large.blocking_recv().unwrap().input, 3);
        let two = ["12345", "67890"].map(|text| counter.submit(job(Encoding::Chars4, "", text)));
        assert!(two.into_iter().all(|counting| counting.unwrap().blocking_recv().is_ok()));
    }

    #[test]
    fn what_is_queued_is_counted_before_the_counter_goes() {
        let counter = Counter::start(1, 64, 1000);
        let receivers: Vec<_> =
            (0..50).map(|_| counter.submit(job(Encoding::O200k, "hello", "world")).unwrap()).collect();
        drop(counter);
        assert!(receivers.into_iter().all(|receiver| receiver.blocking_recv().is_ok()));
    }
}
