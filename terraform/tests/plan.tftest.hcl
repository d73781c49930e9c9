mock_provider "google" {}

variables {
  project        = "my-robots-1"
  admin_networks = { office = "203.0.113.0/24" }
}

run "cluster" {
  command = plan

  assert {
    condition     = google_container_cluster.main.private_cluster_config[0].enable_private_nodes
    error_message = "machines must have no public addresses"
  }
  assert {
    condition     = google_container_cluster.main.workload_identity_config[0].workload_pool == "my-robots-1.svc.id.goog"
    error_message = "pods must be somebody by Workload Identity"
  }
  assert {
    condition     = google_container_cluster.main.remove_default_node_pool
    error_message = "the default pool has no limits of ours"
  }
  assert {
    condition     = google_container_cluster.main.release_channel[0].channel == "REGULAR"
    error_message = "the cluster must follow a release channel"
  }
  assert {
    condition     = google_container_cluster.main.addons_config[0].gcs_fuse_csi_driver_config[0].enabled
    error_message = "the bucket must be mountable"
  }
  assert {
    condition     = google_container_cluster.main.monitoring_config[0].managed_prometheus[0].enabled
    error_message = "metrics must be scraped"
  }
  assert {
    condition     = google_container_cluster.main.deletion_protection
    error_message = "the cluster must not be deleted by mistake"
  }
  assert {
    condition     = [for block in google_container_cluster.main.master_authorized_networks_config[0].cidr_blocks : block.cidr_block] == ["203.0.113.0/24"]
    error_message = "the API server must answer those networks only"
  }
}

run "pools" {
  command = plan

  assert {
    condition     = alltrue([for key in ["cpu", "gpu", "gpuspot"] : google_container_node_pool.pool[key].autoscaling[0].total_min_node_count == 0])
    error_message = "pools that nobody uses must cost nothing"
  }
  assert {
    condition     = google_container_node_pool.pool["gpuspot"].node_config[0].spot && !google_container_node_pool.pool["gpu"].node_config[0].spot
    error_message = "one pool of spot machines, one on demand"
  }
  assert {
    condition     = google_container_node_pool.pool["gpu"].node_config[0].guest_accelerator[0].type == "nvidia-l4"
    error_message = "GPU pools must have the accelerator"
  }
  assert {
    condition     = alltrue([for pool in google_container_node_pool.pool : pool.node_config[0].workload_metadata_config[0].mode == "GKE_METADATA"])
    error_message = "pods must not see the machine's own account"
  }
  assert {
    condition     = alltrue([for pool in google_container_node_pool.pool : pool.management[0].auto_repair && pool.management[0].auto_upgrade])
    error_message = "machines must be repaired and upgraded"
  }
  assert {
    condition     = google_container_node_pool.pool["gpuspot"].node_config[0].taint[0].key == "cloud.google.com/gke-spot" && length(google_container_node_pool.pool["cpu"].node_config[0].taint) == 0
    error_message = "only what tolerates it may run on spot machines"
  }
}

run "storage" {
  command = plan

  assert {
    condition     = google_storage_bucket.workspace.uniform_bucket_level_access && google_storage_bucket.workspace.public_access_prevention == "enforced"
    error_message = "the bucket must be private as a whole"
  }
  assert {
    condition     = google_storage_bucket.workspace.versioning[0].enabled
    error_message = "what is overwritten must be kept a while"
  }
  assert {
    condition     = google_storage_bucket_iam_member.train.role == "roles/storage.objectUser"
    error_message = "trainings may use objects, not rule the bucket"
  }
  assert {
    condition     = google_service_account_iam_member.train.member == "serviceAccount:my-robots-1.svc.id.goog[flex-rl/flex-rl-train]"
    error_message = "only the pods that train may be its account"
  }
  assert {
    condition     = google_artifact_registry_repository.images.docker_config[0].immutable_tags
    error_message = "a tag must not become another image"
  }
}

run "nothing_by_default" {
  command = plan

  assert {
    condition     = length(google_compute_instance.dev) == 0 && length(google_billing_budget.monthly) == 0
    error_message = "a machine and a budget are there when they are asked for"
  }
}

run "dev_machine" {
  command = plan
  variables {
    dev_machine = {}
  }
  assert {
    condition     = length(google_compute_instance.dev[0].network_interface[0].access_config) == 0
    error_message = "the machine must have no public address"
  }
  assert {
    condition     = google_compute_firewall.iap[0].source_ranges == toset(["35.235.240.0/20"])
    error_message = "it is reached through IAP only"
  }
}

run "what_kubernetes_is_given" {
  command = plan
  variables {
    name = "robots"
  }

  assert {
    condition     = yamldecode(split("---", output.workspace)[0]).parameters.network == "robots"
    error_message = "the workspace's disk must lie on this network"
  }
  assert {
    condition = one([
      for volume in yamldecode(output.archive).spec.jobTemplate.spec.template.spec.volumes : volume.csi.volumeAttributes.bucketName if volume.name == "bucket"
    ]) == "my-robots-1-robots-workspace"
    error_message = "the workspace must be archived in this project's bucket"
  }
}

run "everybody_is_no_admin" {
  command = plan
  variables {
    admin_networks = { world = "0.0.0.0/0" }
  }
  expect_failures = [var.admin_networks]
}

run "a_zone_is_no_region" {
  command = plan
  variables {
    region = "europe-west4-a"
  }
  expect_failures = [var.region]
}

run "a_budget_needs_an_account" {
  command = plan
  variables {
    monthly_budget = 100
  }
  expect_failures = [google_billing_budget.monthly]
}
