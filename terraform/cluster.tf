resource "google_container_cluster" "main" {
  name                = var.name
  location            = var.region
  network             = google_compute_network.main.id
  subnetwork          = google_compute_subnetwork.main.id
  deletion_protection = var.deletion_protection
  resource_labels     = local.labels

  # the pools below, which can change without the cluster
  remove_default_node_pool = true
  initial_node_count       = 1

  release_channel {
    channel = var.release_channel
  }

  workload_identity_config {
    workload_pool = "${var.project}.svc.id.goog"
  }

  ip_allocation_policy {
    cluster_secondary_range_name  = "pods"
    services_secondary_range_name = "services"
  }

  private_cluster_config {
    enable_private_nodes    = true
    enable_private_endpoint = false
    master_ipv4_cidr_block  = "172.16.0.0/28"
  }

  master_authorized_networks_config {
    dynamic "cidr_blocks" {
      for_each = var.admin_networks
      content {
        display_name = cidr_blocks.key
        cidr_block   = cidr_blocks.value
      }
    }
  }

  addons_config {
    gcs_fuse_csi_driver_config {
      enabled = true
    }
    gcp_filestore_csi_driver_config {
      enabled = true
    }
  }

  monitoring_config {
    enable_components = ["SYSTEM_COMPONENTS"]
    managed_prometheus {
      enabled = true
    }
  }

  # NetworkPolicies are enforced by it
  datapath_provider = "ADVANCED_DATAPATH"
}

locals {
  labels = { app = "flex-rl", managed-by = "terraform" }

  # but for the system's, each from zero: what nobody uses costs nothing
  pools = {
    system  = { machine_type = "e2-standard-4", min = 1, max = 3, spot = false, gpus = 0 }
    cpu     = { machine_type = var.cpu_pool.machine_type, min = 0, max = var.cpu_pool.max_nodes, spot = var.cpu_pool.spot, gpus = 0 }
    gpu     = { machine_type = var.gpu_pool.machine_type, min = 0, max = var.gpu_pool.max_nodes, spot = false, gpus = var.gpu_pool.gpus_per_node }
    gpuspot = { machine_type = var.gpu_pool.machine_type, min = 0, max = var.gpu_pool.max_spot_nodes, spot = true, gpus = var.gpu_pool.gpus_per_node }
  }
}

resource "google_container_node_pool" "pool" {
  for_each = local.pools
  name     = each.key
  cluster  = google_container_cluster.main.id

  autoscaling {
    total_min_node_count = each.value.min
    total_max_node_count = each.value.max
    location_policy      = each.value.spot ? "ANY" : "BALANCED"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    machine_type    = each.value.machine_type
    spot            = each.value.spot
    service_account = google_service_account.node.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    disk_size_gb    = 100
    resource_labels = local.labels

    workload_metadata_config {
      mode = "GKE_METADATA"
    }

    shielded_instance_config {
      enable_secure_boot          = each.value.gpus == 0
      enable_integrity_monitoring = true
    }

    dynamic "guest_accelerator" {
      for_each = each.value.gpus > 0 ? [each.value.gpus] : []
      content {
        type  = var.gpu_pool.accelerator
        count = guest_accelerator.value
        gpu_driver_installation_config {
          gpu_driver_version = "LATEST"
        }
      }
    }

    dynamic "taint" {
      for_each = each.value.spot ? ["cloud.google.com/gke-spot"] : []
      content {
        key    = taint.value
        value  = "true"
        effect = "NO_SCHEDULE"
      }
    }
  }
}
