//! A file system that is really full: the journal has one of a few MB to itself, as an image on a loop device and in
//! memory, while the database is out of reach.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal as Kill;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::program::{Program, configure};
use super::{came_to, core, counters_equal_events, json_rows, rows};
use crate::harness::{Cable, Client, Ended, Upstream, answer, batch, batch_answer, request, within};
use crate::postgres::{Database, shared};

const TENANT: &str = "tn_full";
const CLIENTS: usize = 4;
/// Calls between two looks at how the journal is: some 200 kB of it.
const ROUND: usize = 40;

/// What the journal lies on.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// An ext4 image of 4 MB.
    Image,
    /// A tmpfs of 2 MB.
    Memory,
}

/// A file system that is mounted for as long as this lives.
struct Mount(PathBuf);

impl Mount {
    /// `None` where this process may not mount, or what makes an image is not installed.
    fn new(kind: Kind, data: &Path) -> Option<Self> {
        let dir = data.join("data");
        std::fs::create_dir(&dir).unwrap();
        let mut mount = Command::new("mount");
        match kind {
            Kind::Image => {
                let image = data.join("image");
                std::fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
                succeeds(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))?;
                mount.args(["-o", "loop"]).arg(&image)
            }
            Kind::Memory => mount.args(["-t", "tmpfs", "-o", "size=2m", "tollgate-test"]),
        };
        succeeds(mount.arg(&dir))?;
        Some(Self(dir))
    }

    /// Something else takes the room that is left.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("somebody-elses");
        let mut file = std::fs::File::create(&path).unwrap();
        let full = loop {
            if let Err(error) = file.write_all(&[1; 1024]) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        path
    }

    /// The names of the journal's segments.
    fn segments(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.0.join("journal")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".seg")).collect()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = succeeds(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn succeeds(command: &mut Command) -> Option<()> {
    let output = command.output().ok()?;
    output.status.success().then_some(())
}

/// A program whose journal has little room, and its database at the end of a cable.
struct Scene {
    upstream: Upstream,
    database: Database<'static>,
    cable: Cable,
    program: Program,
    variables: String,
    asked: usize,
    // In this order: what is mounted in a directory goes before the directory.
    mount: Mount,
    data: TempDir,
}

impl Scene {
    /// Some calls are recorded, and the database is out of reach. `None` where nothing can be mounted.
    async fn new(kind: Kind, variables: &[(&str, &str)]) -> Option<Self> {
        let data = tempfile::tempdir().unwrap();
        let Some(mount) = Mount::new(kind, data.path()) else {
            eprintln!("no {kind:?} can be mounted here: fault 80 is left to the tests of the journal's seam");
            return None;
        };
        let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(10))).await;
        let database = shared().database();
        let cable = Cable::new(shared().port(), Duration::ZERO).await;
        let url = format!("postgres://postgres@127.0.0.1:{}/{}", cable.port(), database.name());
        configure(data.path(), &upstream.url(), &url, "", "");
        let variables: String =
            variables.iter().map(|(key, value)| format!("export TOLLGATE__DATA__{key}={value};")).collect();
        let program = Program::start_limited(data.path(), &variables).await;
        let mut scene = Self { upstream, database, cable, program, variables, asked: 0, mount, data };
        scene.call(ROUND).await;
        rows(&scene.database, TENANT, ROUND).await;
        scene.cable.cut();
        scene.until("tollgate_database_up", 0.0).await;
        Some(scene)
    }

    /// So many calls more, each of which is answered whole. The agent's name is long, to fill the journal soon.
    async fn call(&mut self, calls: usize) {
        let (address, first) = (self.program.address, self.asked);
        let agent = "x".repeat(2000);
        let callers = (0..CLIENTS).map(async |caller| {
            let mut client = Client::connect(address).await;
            for number in (first..first + calls).skip(caller).step_by(CLIENTS) {
                let id = format!("r-{number}");
                client.send(batch(TENANT, 1).header("x-request-id", &id).header("user-agent", &agent)).await;
                let response = client.read_response().await;
                assert_eq!((response.status, response.ended), (200, Ended::Clean), "{id}");
            }
        });
        join_all(callers).await;
        self.asked += calls;
    }

    /// Calls until the journal can't be written, and some more: they are answered, it is said, and nothing is lost.
    async fn call_until_full(&mut self) {
        while self.program.metric("tollgate_journal_healthy").await > 0.0 {
            assert!(self.asked < 50 * ROUND, "the file system is never full");
            self.call(ROUND).await;
        }
        self.call(5 * ROUND).await;
        self.full().await;
    }

    async fn full(&self) {
        let (status, readiness) = self.readiness().await;
        assert_eq!((status, &readiness["status"]), (200, &json!("degraded")), "{readiness}");
        let journal = &readiness["parts"]["journal"];
        assert_eq!(journal["state"], "failing", "{readiness}");
        assert!(journal.to_string().contains("No space left on device"), "{readiness}");
        assert_eq!(self.program.metric("tollgate_journal_healthy").await, 0.0);
        assert!(self.program.logged("records are kept in memory") > 0, "it is logged");
    }

    async fn readiness(&self) -> (u16, Value) {
        let response = Client::ask(self.program.admin, request("GET", "/readyz")).await;
        (response.status, response.json())
    }

    async fn until(&self, metric: &str, value: f64) {
        let what = format!("{metric} becomes {value}");
        within(&what, async { while self.program.metric(metric).await != value {} }).await;
    }

    /// Starts the program once more after it has ended.
    async fn start_again(&mut self) {
        self.program = Program::start_limited(self.data.path(), &self.variables).await;
    }

    async fn kill(&mut self) {
        self.program.signal(Kill::KILL);
        self.program.ended().await;
    }

    /// All is well again; each call that was answered has its row, once, and is charged; nothing is left.
    async fn stop(mut self) {
        self.until("tollgate_journal_healthy", 1.0).await;
        self.until("tollgate_journal_records", 0.0).await;
        assert_eq!(self.program.metric("tollgate_events_lost_total").await, 0.0, "nothing was shed");
        assert_eq!(self.program.metric("tollgate_events_dead_total").await, 0.0);
        within("it says that it is ready", async { while self.readiness().await.1["status"] != "ok" {} })
            .await;
        // The journal takes what comes, and goes on doing so.
        self.call(ROUND).await;
        self.until("tollgate_journal_records", 0.0).await;
        // So small a disk may have been full once more by now.
        self.until("tollgate_journal_healthy", 1.0).await;
        let rows = rows(&self.database, TENANT, self.asked).await;
        let ids: BTreeSet<_> = rows.iter().map(|row| row["request_id"].as_str().unwrap()).collect();
        assert_eq!((rows.len(), ids.len()), (self.asked, self.asked), "as many rows as answers, none twice");
        assert_eq!(self.upstream.requests().len(), self.asked);
        assert!(rows.iter().all(|row| core(row) == came_to("completed", 200, 10, "reported")));
        counters_equal_events(&self.database).await;
        let settled =
            "SELECT to_jsonb(sum(settled)::bigint) FROM quota_usage WHERE dimension = 'tokens_per_day'";
        assert_eq!(json_rows(&self.database, settled, 1).await, [json!(10 * self.asked)]);
        self.program.signal(Kill::TERM);
        assert_eq!(self.program.ended().await.code(), Some(0));
        assert_eq!(self.mount.segments(), Vec::<String>::new(), "the journal is empty");
    }
}

/// The journal itself takes all the room; what it held is shipped, and it goes on, while calls keep coming.
async fn filled_by_the_journal(kind: Kind, variables: &[(&str, &str)]) {
    let Some(mut scene) = Scene::new(kind, variables).await else { return };
    scene.call_until_full().await;
    scene.cable.mend();
    scene.call(5 * ROUND).await;
    scene.stop().await;
}

#[tokio::test]
async fn fault_80_a_disk_image_that_the_journal_fills_is_trimmed_when_the_database_is_back() {
    filled_by_the_journal(Kind::Image, &[]).await;
}

#[tokio::test]
async fn fault_80_a_disk_image_is_trimmed_when_each_commit_is_synced_too() {
    let variables = [("JOURNAL_FSYNC_INTERVAL", "0s"), ("JOURNAL_SEGMENT_BYTES", "256KiB")];
    filled_by_the_journal(Kind::Image, &variables).await;
}

#[tokio::test]
async fn fault_80_a_tmpfs_that_one_segment_fills_is_trimmed_when_the_database_is_back() {
    filled_by_the_journal(Kind::Memory, &[]).await;
}

#[tokio::test]
async fn fault_80_a_tmpfs_that_many_segments_fill_is_trimmed_when_the_database_is_back() {
    filled_by_the_journal(Kind::Memory, &[("JOURNAL_SEGMENT_BYTES", "64KiB")]).await;
}

#[tokio::test]
async fn fault_80_room_that_comes_back_takes_what_was_held_and_a_kill_loses_none_of_it() {
    for kind in [Kind::Memory, Kind::Image] {
        let Some(mut scene) = Scene::new(kind, &[]).await else { continue };
        let taken = scene.mount.fill();
        scene.call_until_full().await;
        std::fs::remove_file(taken).unwrap();
        scene.until("tollgate_journal_healthy", 1.0).await;
        assert_eq!(scene.program.metric("tollgate_events_lost_total").await, 0.0, "nothing was shed");
        scene.kill().await;
        scene.cable.mend();
        scene.start_again().await;
        scene.stop().await;
    }
}

#[tokio::test]
async fn fault_80_a_start_on_a_full_file_system_serves_and_recovers_when_the_database_is_back() {
    for kind in [Kind::Memory, Kind::Image] {
        let Some(mut scene) = Scene::new(kind, &[]).await else { continue };
        scene.call(ROUND).await;
        assert_eq!(scene.program.metric("tollgate_journal_healthy").await, 1.0);
        scene.kill().await;
        scene.mount.fill();
        scene.start_again().await;
        scene.call(ROUND).await;
        scene.full().await;
        scene.cable.mend();
        scene.call(5 * ROUND).await;
        scene.stop().await;
    }
}
