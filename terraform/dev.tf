# A machine with one GPU, reached through IAP: gcloud compute ssh NAME --tunnel-through-iap
resource "google_compute_instance" "dev" {
  count        = var.dev_machine == null ? 0 : 1
  name         = "${var.name}-dev"
  machine_type = var.dev_machine.machine_type
  zone         = "${var.region}-a"
  labels       = local.labels

  boot_disk {
    initialize_params {
      image = "projects/ml-images/global/images/family/common-cu128-ubuntu-2204-nvidia-570"
      size  = var.dev_machine.disk_gb
    }
  }

  guest_accelerator {
    type  = var.dev_machine.accelerator
    count = 1
  }

  scheduling {
    on_host_maintenance = "TERMINATE"
    automatic_restart   = true
  }

  network_interface {
    subnetwork = google_compute_subnetwork.main.id
  }

  service_account {
    email  = google_service_account.train.email
    scopes = ["cloud-platform"]
  }

  shielded_instance_config {
    enable_integrity_monitoring = true
  }

  metadata = {
    enable-oslogin         = "true"
    block-project-ssh-keys = "true"
  }
}

resource "google_compute_firewall" "iap" {
  count         = var.dev_machine == null ? 0 : 1
  name          = "${var.name}-iap"
  network       = google_compute_network.main.id
  source_ranges = ["35.235.240.0/20"]
  allow {
    protocol = "tcp"
    ports    = ["22"]
  }
}
