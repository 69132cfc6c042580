//! Which process of a run this is, and where process 0 is: from options, and from the variables that
//! schedulers set.

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};

use crate::error::{Error, Tag, valid};

/// The coordinator's port on TPU hosts, where nothing tells one. libtpu itself uses ports from 8471 to 8476.
const TPU_PORT: u16 = 8482;

/// First of the ports that are derived from a job's id. Systems give none of these out by themselves.
const FIRST_PORT: u64 = 61440;

/// Number of ports that are derived from a job's id.
const PORTS: u64 = 4096;

/// What the user says about the run. The environment tells the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// `HOST:PORT` of process 0, as the others reach it.
    pub coordinator: Option<String>,
    /// Number of processes.
    pub processes: Option<usize>,
    /// Index of this process.
    pub process: Option<usize>,
}

/// This process's place in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `HOST:PORT` of process 0; `None` when there is only one process.
    pub coordinator: Option<String>,
    /// Number of processes.
    pub processes: usize,
    /// Index of this process.
    pub process: usize,
    /// What tells this, for the user.
    pub how: String,
}

/// What an environment tells. An error counts only if the user does not give the value.
struct Place {
    coordinator: Result<String>,
    processes: Result<usize>,
    process: Result<usize>,
    how: String,
}

/// Finds this process's place in a run.
///
/// The user's values come first. The first of these environments tells what is missing: TPU hosts, an indexed
/// job of Kubernetes, Open MPI, Slurm. Kubernetes tells only the index, so it counts only if the user gives
/// the rest. Without any of them there is one process.
///
/// `lookup` returns an environment variable. On TPU machines of Google Compute Engine, which set none, it has
/// to return the instance attributes `agent-worker-number`, `worker-network-endpoints` and `tpu-env` by these
/// names.
///
/// # Errors
/// [`Error::Usage`] names a variable with its value. [`Error::Invalid`] names `coordinator`, `processes` or
/// `process`, when the value is wrong, or missing although others are given.
pub fn find(given: &Given, lookup: impl Fn(&str) -> Option<String>) -> Result<Found> {
    // Scripts switch variables off by making them empty.
    let lookup = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
    let nothing = *given == Given::default();
    let everything = given.coordinator.is_some() && given.processes.is_some() && given.process.is_some();
    let kubernetes = || if nothing { None } else { kubernetes(&lookup) };
    let place = match everything {
        true => None,
        false => tpu(&lookup).or_else(kubernetes).or_else(|| open_mpi(&lookup)).or_else(|| slurm(&lookup)),
    };
    let how = match (&place, nothing) {
        (None, true) => {
            let how = "no option and no variable tells of other processes".into();
            return Ok(Found { coordinator: None, processes: 1, process: 0, how });
        }
        (None, false) => "options".into(),
        (Some(place), true) => place.how.clone(),
        (Some(place), false) => format!("options and {}", place.how),
    };
    let missing = |field, what| Error::Invalid { field, problem: format!("is missing: {what}") };
    let place = place.unwrap_or_else(|| Place {
        coordinator: Err(missing("coordinator", "give HOST:PORT of process 0").into()),
        processes: Err(missing("processes", "give the number of processes").into()),
        process: Err(missing("process", "give the index of this process, from 0").into()),
        how: String::new(),
    });

    let processes = given.processes.map_or(place.processes, Ok)?;
    valid!(processes > 0, "processes", "0 is not a number of processes ({how})");
    // A single process needs no index and no coordinator.
    let process = match processes {
        1 => given.process.unwrap_or(0),
        _ => given.process.map_or(place.process, Ok)?,
    };
    valid!(
        process < processes,
        "process",
        "{process} is not less than the number of processes, {processes} ({how})"
    );
    if processes == 1 {
        return Ok(Found { coordinator: None, processes, process, how });
    }
    let coordinator = given.coordinator.clone().map_or(place.coordinator, Ok)?;
    valid!(parts(&coordinator).is_some(), "coordinator", "{coordinator:?} is not HOST:PORT ({how})");
    Ok(Found { coordinator: Some(coordinator), processes, process, how })
}

impl Found {
    /// Returns the address at which process 0 listens: all addresses of the machine, unless the run is on one
    /// machine.
    pub fn listen_at(&self) -> Option<String> {
        let (host, port) = parts(self.coordinator.as_ref()?)?;
        let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let local = host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback());
        Some(if local { format!("{host}:{port}") } else { format!("[::]:{port}") })
    }
}

/// Splits `HOST:PORT`.
fn parts(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    // The colons of IPv6 need brackets, or their last part would be taken for the port.
    let plain = !host.contains(':') || host.starts_with('[') && host.ends_with(']');
    Some((host, port.parse().ok()?)).filter(|&(host, port)| !host.is_empty() && plain && port > 0)
}

/// Returns a variable that has to be set.
fn text(lookup: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<String> {
    lookup(name).with_context(|| format!("{name} is not set")).tag(Error::Usage)
}

/// Returns a variable that has to be a number.
fn number(lookup: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<u64> {
    let value = text(lookup, name)?;
    value.trim().parse().map_err(|_| wrong(name, &value, "a number"))
}

fn index(lookup: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<usize> {
    number(lookup, name).map(|value| value as usize)
}

fn wrong(name: &str, value: &str, expected: &str) -> anyhow::Error {
    Error::Usage(anyhow!("{name}={value:?} is not {expected}")).into()
}

/// Lists variables that are set, with their values.
fn shown(lookup: &dyn Fn(&str) -> Option<String>, names: &[&str]) -> String {
    let set = names.iter().filter_map(|name| Some(format!("{name}={}", lookup(name)?)));
    set.collect::<Vec<_>>().join(", ")
}

/// A port that jobs on one machine are unlikely to share.
fn port_of(job: u64) -> u64 {
    FIRST_PORT + job % PORTS
}

/// TPU hosts: Google Kubernetes Engine sets variables, Google Compute Engine has attributes of the machine.
/// Several slices ("megascale") count on through all of them.
fn tpu(lookup: &dyn Fn(&str) -> Option<String>) -> Option<Place> {
    let first = |names: &[&str]| names.iter().find_map(|&name| Some((name.to_owned(), lookup(name)?)));
    let listed = first(&["TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "worker-network-endpoints"])?;
    let id = if listed.0.starts_with("TPU") { "TPU_WORKER_ID" } else { "agent-worker-number" };
    let host = |entry: &str| match entry.split(':').collect::<Vec<_>>()[..] {
        // An older form of the attribute: name, id and IP address.
        [_, _, ip] if listed.0 == "worker-network-endpoints" => ip.to_owned(),
        [host, ..] => host.to_owned(),
        [] => String::new(),
    };
    let hosts: Vec<String> = listed.1.split(',').map(|entry| host(entry.trim())).collect();

    // The attribute tpu-env has lines such as NAME: 'VALUE'.
    let attributes = lookup("tpu-env").unwrap_or_default();
    let attribute = |name: &str| {
        let values = attributes.lines().filter_map(|line| line.split_once(':'));
        let value = values.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim()).next()?;
        Some(value.trim_matches('\'').to_owned())
    };
    let slice = |name: &str| lookup(name).or_else(|| attribute(name));
    let slices = match slice("MEGASCALE_NUM_SLICES") {
        Some(_) => number(&slice, "MEGASCALE_NUM_SLICES"),
        None => Ok(1),
    };
    let several = !matches!(slices, Ok(0 | 1));
    let of_slice = if several { index(&slice, "MEGASCALE_SLICE_ID") } else { Ok(0) };
    let coordinator = match several {
        true => text(&slice, "MEGASCALE_COORDINATOR_ADDRESS").map(|address| host(&address)),
        false => Ok(hosts[0].clone()),
    };
    let coordinator = coordinator.and_then(|host| match host.is_empty() {
        true => Err(wrong(&listed.0, &listed.1, "a list of hosts")),
        false => Ok(format!("{host}:{TPU_PORT}")),
    });
    let worker = index(lookup, id);
    let how = format!("a TPU host ({})", shown(&slice, &[id, "MEGASCALE_SLICE_ID"]));
    let per_slice = hosts.len();
    Some(Place {
        coordinator,
        processes: slices.map(|slices| per_slice * slices as usize),
        process: worker.and_then(|worker| match worker < per_slice {
            true => Ok(of_slice? * per_slice + worker),
            false => Err(wrong(
                id,
                &worker.to_string(),
                &format!("less than the {per_slice} hosts of {}", listed.0),
            )),
        }),
        how,
    })
}

/// An indexed job. Neither its number of pods nor the name of its headless service is in the environment.
fn kubernetes(lookup: &dyn Fn(&str) -> Option<String>) -> Option<Place> {
    const INDEX: &str = "JOB_COMPLETION_INDEX";
    let of_this = lookup(INDEX)?;
    let pod = lookup("HOSTNAME").unwrap_or_default();
    let job = pod.strip_suffix(&format!("-{of_this}")).unwrap_or("JOB");
    let missing = |field, what| Error::Invalid { field, problem: format!("is missing: give {what}") };
    let address =
        format!("{job}-0.SERVICE:PORT, with the headless service that is the subdomain of the pods");
    Some(Place {
        coordinator: Err(missing("coordinator", address).into()),
        processes: Err(missing("processes", "the number of completions of the job".into()).into()),
        process: index(lookup, INDEX),
        how: format!("a Kubernetes job ({})", shown(lookup, &[INDEX])),
    })
}

/// Programs that `mpirun` starts. It tells its own address, and is taken to run where process 0 runs.
fn open_mpi(lookup: &dyn Fn(&str) -> Option<String>) -> Option<Place> {
    let [rank, size, uri] = ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_MCA_orte_hnp_uri"];
    lookup(rank)?;
    // Such as 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911 or 1314521088.0;tcp6://[fe80::1,fe80::2]:43370
    let address = |value: &str| {
        let (job, hosts) = value.split_once(".")?;
        // Open MPI counts jobs in steps of 4096.
        let port = port_of(job.parse::<u64>().ok()? / 4096);
        let (kind, hosts) = hosts.split_once("://")?;
        match kind.ends_with('6') {
            true => Some(format!("[{}]:{port}", hosts.strip_prefix('[')?.split([',', ']']).next()?)),
            false => Some(format!("{}:{port}", hosts.split([',', ':']).next()?)),
        }
    };
    Some(Place {
        coordinator: text(lookup, uri).context("give coordinator, HOST:PORT of process 0").and_then(
            |value| {
                let address = address(&value).filter(|address| parts(address).is_some());
                address.ok_or_else(|| wrong(uri, &value, "an address"))
            },
        ),
        processes: index(lookup, size),
        process: index(lookup, rank),
        how: format!("Open MPI ({})", shown(lookup, &[rank, size])),
    })
}

/// Programs that `srun` starts. A script of `sbatch` itself has no list of nodes of a step, and is one
/// process.
fn slurm(lookup: &dyn Fn(&str) -> Option<String>) -> Option<Place> {
    let [process, nodes, job] = ["SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"];
    lookup(process)?;
    let list = lookup(nodes)?;
    let tasks =
        if lookup("SLURM_STEP_NUM_TASKS").is_some() { "SLURM_STEP_NUM_TASKS" } else { "SLURM_NTASKS" };
    let coordinator = number(lookup, job).and_then(|job| match first_node(&list) {
        Some(node) => Ok(format!("{node}:{}", port_of(job))),
        None => Err(wrong(nodes, &list, "a list of nodes such as a[01-03,7],b")),
    });
    Some(Place {
        coordinator,
        processes: index(lookup, tasks),
        process: index(lookup, process),
        how: format!("Slurm ({})", shown(lookup, &[process, tasks, nodes])),
    })
}

/// Returns the first node of a list such as `a[01-03,7],b`, in which brackets hold numbers and ranges.
fn first_node(list: &str) -> Option<String> {
    let (mut node, mut rest) = (String::new(), list.trim());
    loop {
        let end = rest.find(['[', ',']).unwrap_or(rest.len());
        node.push_str(&rest[..end]);
        let Some(bracket) = rest[end..].strip_prefix('[') else { break };
        let (numbers, after) = bracket.split_once(']')?;
        node.push_str(numbers.split(['-', ',']).next().filter(|first| !first.is_empty())?);
        rest = after;
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    (!node.is_empty() && node.chars().all(is_name)).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Kind, kind};

    /// Finds with variables from a text such as `A=1 B=2`.
    fn found(given: &Given, variables: &str) -> Result<Found> {
        let variables: Vec<(&str, &str)> = variables.split(' ').filter_map(|v| v.split_once('=')).collect();
        let value = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        find(given, value)
    }

    /// Checks process, number of processes and coordinator in an environment.
    fn expect(variables: &str, process: usize, processes: usize, coordinator: &str) -> String {
        let found = found(&Given::default(), variables).unwrap();
        let coordinator = Some(coordinator.to_owned()).filter(|c| !c.is_empty());
        assert_eq!((found.process, found.processes, found.coordinator), (process, processes, coordinator));
        found.how
    }

    fn problem(given: &Given, variables: &str) -> String {
        let error = found(given, variables).unwrap_err();
        assert_eq!(kind(&error), Kind::Usage, "{error:#}");
        format!("{error:#}")
    }

    fn given(coordinator: &str, processes: usize, process: usize) -> Given {
        Given { coordinator: Some(coordinator.into()), processes: Some(processes), process: Some(process) }
    }

    #[test]
    fn without_signs_there_is_one_process() {
        let how = expect("HOME=/root TPU_WORKER_HOSTNAMES= JOB_COMPLETION_INDEX=3", 0, 1, "");
        assert_eq!(how, "no option and no variable tells of other processes");
        // A script of sbatch, outside of a step.
        expect("SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_JOB_ID=7", 0, 1, "");
    }

    #[test]
    fn given_values_come_first() {
        const SLURM: &str = "SLURM_PROCID=x SLURM_NTASKS=9 SLURM_STEP_NODELIST=a[1-9] SLURM_JOB_ID=5";
        let all = found(&given("host:1234", 2, 1), SLURM).unwrap();
        let coordinator = Some("host:1234".into());
        assert_eq!(all, Found { coordinator, processes: 2, process: 1, how: "options".into() });
        let some = found(&Given { process: Some(4), ..Given::default() }, SLURM).unwrap();
        assert_eq!((some.process, some.processes, some.coordinator.as_deref()), (4, 9, Some("a1:61445")));
        assert!(some.how.starts_with("options and Slurm (SLURM_PROCID=x, "), "{}", some.how);
        // One process needs nothing else.
        let one = found(&Given { processes: Some(1), ..Given::default() }, SLURM).unwrap();
        assert_eq!((one.process, one.processes, one.coordinator), (0, 1, None));
    }

    #[test]
    fn what_is_given_wrong_or_not_at_all_is_named() {
        let some = |coordinator: Option<&str>, processes, process| Given {
            coordinator: coordinator.map(str::to_owned),
            processes,
            process,
        };
        let cases = [
            (some(None, Some(2), Some(0)), "coordinator is missing: give HOST:PORT of process 0"),
            (some(Some("a:1"), None, Some(0)), "processes is missing: give the number of processes"),
            (some(Some("a:1"), Some(2), None), "process is missing: give the index of this process, from 0"),
            (given("a:1", 2, 2), "process 2 is not less than the number of processes, 2 (options)"),
            (given("a:1", 1, 1), "process 1 is not less than the number of processes, 1 (options)"),
            (given("a:1", 0, 0), "processes 0 is not a number of processes (options)"),
            (given("a", 2, 0), "coordinator \"a\" is not HOST:PORT (options)"),
            (given("a:0", 2, 0), "coordinator \"a:0\" is not HOST:PORT (options)"),
            (given("a:70000", 2, 0), "coordinator \"a:70000\" is not HOST:PORT (options)"),
            (given(":1", 2, 0), "coordinator \":1\" is not HOST:PORT (options)"),
            (given("fe80::1", 2, 0), "coordinator \"fe80::1\" is not HOST:PORT (options)"),
        ];
        for (given, expected) in cases {
            assert_eq!(problem(&given, ""), expected);
        }
    }

    #[test]
    fn process_0_listens_everywhere_unless_the_run_is_on_one_machine() {
        let at = |address: &str| found(&given(address, 2, 0), "").unwrap().listen_at().unwrap();
        for local in ["localhost:7", "127.0.0.1:7", "[::1]:7"] {
            assert_eq!(at(local), local);
        }
        for other in ["host0:7", "10.0.0.1:7", "[fe80::1]:7"] {
            assert_eq!(at(other), "[::]:7");
        }
        assert_eq!(found(&Given::default(), "").unwrap().listen_at(), None);
    }

    #[test]
    fn tpu_hosts_of_kubernetes_have_variables() {
        let how = expect("TPU_WORKER_ID=1 TPU_WORKER_HOSTNAMES=t-0.s,t-1.s,t-2.s", 1, 3, "t-0.s:8482");
        assert_eq!(how, "a TPU host (TPU_WORKER_ID=1)");
        expect("TPU_WORKER_ID=0 TPU_WORKER_HOSTNAMES=x TPU_PROCESS_ADDRESSES=a:8476,b:8476", 0, 2, "a:8482");
        // A machine of its own, whose number nobody needs.
        expect("TPU_WORKER_HOSTNAMES=localhost", 0, 1, "");
        // They come before Slurm.
        expect(
            "TPU_WORKER_HOSTNAMES=localhost SLURM_PROCID=1 SLURM_STEP_NODELIST=a SLURM_NTASKS=2",
            0,
            1,
            "",
        );
        const SLICES: &str =
            "TPU_WORKER_ID=1 TPU_WORKER_HOSTNAMES=c,d MEGASCALE_NUM_SLICES=3 MEGASCALE_SLICE_ID=2";
        let how = expect(&format!("{SLICES} MEGASCALE_COORDINATOR_ADDRESS=a:8080"), 5, 6, "a:8482");
        assert_eq!(how, "a TPU host (TPU_WORKER_ID=1, MEGASCALE_SLICE_ID=2)");
        let none = Given::default();
        assert_eq!(problem(&none, SLICES), "MEGASCALE_COORDINATOR_ADDRESS is not set");
        assert_eq!(problem(&none, "TPU_WORKER_HOSTNAMES=a,b"), "TPU_WORKER_ID is not set");
        let error = problem(&none, "TPU_WORKER_ID=2 TPU_WORKER_HOSTNAMES=a,b");
        assert_eq!(error, "TPU_WORKER_ID=\"2\" is not less than the 2 hosts of TPU_WORKER_HOSTNAMES");
        let error = problem(&none, "TPU_WORKER_ID=1 TPU_WORKER_HOSTNAMES=,b");
        assert_eq!(error, "TPU_WORKER_HOSTNAMES=\",b\" is not a list of hosts");
    }

    #[test]
    fn tpu_machines_of_compute_engine_have_attributes() {
        expect("agent-worker-number=1 worker-network-endpoints=10.0.0.1,10.0.0.2", 1, 2, "10.0.0.1:8482");
        let old = "agent-worker-number=0 worker-network-endpoints=w0:0:10.0.0.1,w1:1:10.0.0.2";
        expect(old, 0, 2, "10.0.0.1:8482");
        let slices =
            "MEGASCALE_NUM_SLICES:'2'\nMEGASCALE_SLICE_ID:'1'\nMEGASCALE_COORDINATOR_ADDRESS:'10.0.0.9:80'";
        expect(&format!("{old} tpu-env=ZONE:'z'\n{slices}"), 2, 4, "10.0.0.9:8482");
    }

    #[test]
    fn kubernetes_tells_the_index_alone() {
        const POD: &str = "JOB_COMPLETION_INDEX=3 HOSTNAME=train-3";
        let two = Given { process: None, ..given("train-0.pods:1234", 4, 0) };
        let found = found(&two, POD).unwrap();
        assert_eq!(
            (found.process, found.how.as_str()),
            (3, "options and a Kubernetes job (JOB_COMPLETION_INDEX=3)")
        );
        let error = problem(&Given { coordinator: None, ..two.clone() }, POD);
        assert!(error.starts_with("coordinator is missing: give train-0.SERVICE:PORT, "), "{error}");
        let error = problem(&Given { processes: None, ..two.clone() }, POD);
        assert_eq!(error, "processes is missing: give the number of completions of the job");
        let error = problem(&two, "JOB_COMPLETION_INDEX=first");
        assert_eq!(error, "JOB_COMPLETION_INDEX=\"first\" is not a number");
    }

    #[test]
    fn open_mpi_tells_the_launchers_address() {
        const RANKS: &str = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2";
        let with = |uri: &str| format!("{RANKS} OMPI_MCA_orte_hnp_uri={uri}");
        let how = expect(&with("1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"), 1, 2, "10.96.0.1:62624");
        assert_eq!(how, "Open MPI (OMPI_COMM_WORLD_RANK=1, OMPI_COMM_WORLD_SIZE=2)");
        expect(&with("8192.0;tcp://10.0.0.1:34911"), 1, 2, "10.0.0.1:61442");
        expect(&with("8192.0;tcp6://[fe80::b9b,2620::2]:43370"), 1, 2, "[fe80::b9b]:61442");
        expect(
            &format!("SLURM_PROCID=0 SLURM_STEP_NODELIST=n {}", with("4096.0;tcp://h:1")),
            1,
            2,
            "h:61441",
        );
        let none = Given::default();
        let missing = "give coordinator, HOST:PORT of process 0: OMPI_MCA_orte_hnp_uri is not set";
        assert_eq!(problem(&none, RANKS), missing);
        for wrong in ["", "x.0;tcp://h:1", "4096.0;tcp://:1", "4096.0", "4096.0;tcp6://fe80::1:7"] {
            let expected = match wrong {
                "" => missing.into(),
                _ => format!("OMPI_MCA_orte_hnp_uri={wrong:?} is not an address"),
            };
            assert_eq!(problem(&none, &with(wrong)), expected);
        }
        assert_eq!(problem(&none, "OMPI_COMM_WORLD_RANK=1"), "OMPI_COMM_WORLD_SIZE is not set");
    }

    #[test]
    fn slurm_tells_the_first_node_and_the_job() {
        const STEP: &str = "SLURM_PROCID=2 SLURM_NTASKS=4 SLURM_JOB_ID=8195";
        let how = expect(&format!("{STEP} SLURM_STEP_NODELIST=a[01-03,7],b"), 2, 4, "a01:61443");
        assert_eq!(how, "Slurm (SLURM_PROCID=2, SLURM_NTASKS=4, SLURM_STEP_NODELIST=a[01-03,7],b)");
        // The step of an interactive shell has one task, whatever the job has.
        expect(&format!("{STEP} SLURM_STEP_NODELIST=a SLURM_STEP_NUM_TASKS=1"), 0, 1, "");
        let none = Given::default();
        let error = problem(&none, &format!("{STEP} SLURM_STEP_NODELIST=a[01"));
        assert_eq!(error, "SLURM_STEP_NODELIST=\"a[01\" is not a list of nodes such as a[01-03,7],b");
        let error = problem(&none, "SLURM_PROCID=x SLURM_NTASKS=2 SLURM_STEP_NODELIST=a");
        assert_eq!(error, "SLURM_PROCID=\"x\" is not a number");
        let error = problem(&none, "SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_NODELIST=a");
        assert_eq!(error, "SLURM_JOB_ID is not set");
        let error = problem(&none, "SLURM_PROCID=7 SLURM_NTASKS=2 SLURM_STEP_NODELIST=a SLURM_JOB_ID=1");
        assert!(
            error.starts_with("process 7 is not less than the number of processes, 2 (Slurm "),
            "{error}"
        );
    }

    #[test]
    fn the_first_node_of_a_list() {
        let lists = [
            ("node001", Some("node001")),
            ("node001,host2", Some("node001")),
            ("node[001-0015],host2", Some("node001")),
            ("node[001,007-015],host2", Some("node001")),
            ("a[7]", Some("a7")),
            ("a[1-2]-ib,b", Some("a1-ib")),
            ("rack[2-3]n[05-06]", Some("rack2n05")),
            ("host.domain", Some("host.domain")),
            ("", None),
            (",a", None),
            ("a[]", None),
            ("a[1", None),
            ("a]1", None),
            ("a b", None),
        ];
        for (list, first) in lists {
            assert_eq!(first_node(list).as_deref(), first, "{list}");
        }
    }
}
